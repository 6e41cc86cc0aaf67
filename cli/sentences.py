"""Writes docs/messages.md: every sentence of the catalogue, who must act and what they do.

Run ``.venv/bin/python -m cli.sentences``; a test compares the page with the catalogue.
"""

import re
from importlib import import_module
from itertools import groupby
from pathlib import Path
from pkgutil import walk_packages

import blocks
import flows
import splitter
from splitter.errors import default_advice
from splitter.sentences import CATALOGUE

PLACEHOLDER = re.compile(r"\{(\w+)(?::\w+)?\}")
PAGE = Path(__file__).parent.parent / "docs" / "messages.md"

INTRODUCTION = """\
# Failures and warnings

Every sentence that a failed export or a warning can have. Each one ends with its code in square
brackets; search this page for that code. *Words in italics* stand for values such as a file name.

Under each sentence is who must act, and what the operator of the batch service does. Whoever made
the export is usually the project manager: export again in BIOSPEX, or send a corrected archive to
the operator, who [puts it in the old one's place][replace]. Sentences under *request* that begin
with a small letter are parts of `request.cannot-be-carried-out`.

[replace]: operations.md#a-new-archive-for-a-failed-export

`.venv/bin/python -m cli.sentences` writes this page.
"""


def page() -> str:
    """The page, from the declared sentences."""
    for room in (splitter, blocks, flows):
        for module in walk_packages(room.__path__, f"{room.__name__}."):
            import_module(module.name)
    parts = [INTRODUCTION]
    declared = (sentence for sentence in CATALOGUE.values() if sentence.code[:5] != "test.")
    sentences = sorted(declared, key=lambda sentence: sentence.code)
    for room_name, group in groupby(sentences, lambda sentence: sentence.code.split(".")[0]):
        parts.append(f"## {room_name}\n")
        for sentence in group:
            parts.append(
                f"- **`{sentence.code}`** {PLACEHOLDER.sub(_in_italics, sentence.template)}\n"
                f"  - Who acts: **{sentence.actor.value}**. Operator: {default_advice(sentence)}\n"
            )
    return "\n".join(parts)


def _in_italics(placeholder: re.Match[str]) -> str:
    return f"*{placeholder[1].replace('_', ' ')}*"


if __name__ == "__main__":
    PAGE.write_text(page())
