"""Write docs/messages.md: every sentence of the catalogue, with who must act and what they do.

``python -m cli.sentences`` writes the page anew; a test compares the two.
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
# What went wrong

Every failure that BIOSPEX can be told of, and every warning on a run page. Each ends with its code
in square brackets: search this page for the code. *Slanted words* stand for the values of one case.

This page is made from the code by `python -m cli.sentences`.
"""


def page() -> str:
    """The page as the code would have it."""
    for room in (splitter, blocks, flows):
        for module in walk_packages(room.__path__, f"{room.__name__}."):
            import_module(module.name)
    parts = [INTRODUCTION]
    declared = (sentence for sentence in CATALOGUE.values() if sentence.code[:5] != "test.")
    sentences = sorted(declared, key=lambda sentence: sentence.code)
    for room_name, group in groupby(sentences, lambda sentence: sentence.code.split(".")[0]):
        parts.append(f"## {room_name}\n")
        for sentence in group:
            text = PLACEHOLDER.sub(
                lambda found: f"*{found[1].replace('_', ' ')}*", sentence.template
            )
            parts.append(
                f"- **`{sentence.code}`** {text}\n"
                f"  - Who acts: {sentence.actor.value}. {default_advice(sentence)}\n"
            )
    return "\n".join(parts)


def _slanted(placeholder: re.Match[str]) -> str:
    return f"*{placeholder[1].replace('_', ' ')}*"


if __name__ == "__main__":
    PAGE.write_text(page())
