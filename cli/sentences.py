"""Writes docs/messages.md: every sentence of the catalogue, who must act and how.

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
from splitter.sentences import CATALOGUE, DEFAULT_ADVICE

PLACEHOLDER = re.compile(r"\{(\w+)(?::(?:\w+|[^|}]+\|([^}]+)))?\}")
PAGE = Path(__file__).parent.parent / "docs" / "messages.md"

INTRODUCTION = """\
# Failures and warnings

Every sentence of a failed export or a warning. Each ends with its code in square brackets; search
this page for that code. *Words in italics* stand for values such as a file name. Sentences under
*request* that begin with a small letter are parts of `request.cannot-be-carried-out`. Those under
*lane* and *member* are reasons for a lane; the run page and the last log line have them.

After each sentence the page names who must act. Unless there is other advice, the operator of the
batch service does this:

| who must act | the operator |
| --- | --- |
{advice}

Whoever made the export is usually the project manager: export again in BIOSPEX, or send a corrected
archive to the operator, who [replaces the old one][replace].

[replace]: operations.md#a-new-archive-for-a-failed-export

`.venv/bin/python -m cli.sentences` writes this page.
"""


def page() -> str:
    """The page, from the declared sentences."""
    for room in (splitter, blocks, flows):
        for module in walk_packages(room.__path__, f"{room.__name__}."):
            import_module(module.name)
    advice = "\n".join(f"| {actor.value} | {text} |" for actor, text in DEFAULT_ADVICE.items())
    lines = [INTRODUCTION.format(advice=advice)]
    declared = (sentence for sentence in CATALOGUE.values() if sentence.code[:5] != "test.")
    sentences = sorted(declared, key=lambda sentence: sentence.code)
    for room_name, group in groupby(sentences, lambda sentence: sentence.code.split(".")[0]):
        lines.append(f"## {room_name}\n")
        for sentence in group:
            text = PLACEHOLDER.sub(_in_italics, sentence.template)
            act = f"Who acts: **{sentence.actor.value}**. {sentence.advice}".strip()
            lines.append(f"- **`{sentence.code}`** {text}<br>{act}")
        lines.append("")
    return "\n".join(lines)


def _in_italics(found: re.Match[str]) -> str:
    """A placeholder for people, with the plural of its noun if it has one."""
    name, plural = found.groups()
    return f"*{name.replace('_', ' ')}*" + (f" {plural}" if plural else "")


if __name__ == "__main__":
    PAGE.write_text(page())
