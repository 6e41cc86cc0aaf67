"""Escapes text for Markdown; all artifacts use these functions."""

import re

from splitter.sentences import escaped

MAX_TEXT = 2000

# ASCII punctuation that can begin markup, HTML or an automatic link of GFM:
# https://spec.commonmark.org/0.31.2/#backslash-escapes
MARKUP = re.compile(r"[\\`*_\[\]<>|~&@$]|:(?=//)|(?<=www)\.", re.IGNORECASE)


def plain(text: object) -> str:
    """Text that Markdown shows unchanged, on one line."""
    return MARKUP.sub(r"\\\g<0>", escaped(str(text), MAX_TEXT))


def code(text: object) -> str:
    """Text as inline code, in a table too."""
    safe = escaped(str(text), MAX_TEXT).replace("`", "'").replace("|", r"\|")
    return f"`{safe}`"


def link(text: object, address: str) -> str:
    """A link; ``address`` is made by this program."""
    target = address.replace("<", "%3C").replace(">", "%3E").replace(" ", "%20")
    return f"[{plain(text)}](<{target}>)"
