"""The catalogue of sentences: each failure and each warning is declared once, in its own room.

A declaration has a stable code, a template and who must act. Its values are filled in here and
nowhere else. A value that somebody else wrote is cut, escaped and put in quotation marks, so that
it is harmless in a log, a database, a mail and a terminal, and cannot pass for our own words.
"""

import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

MAX_VALUE = 80
"""Characters of a foreign value that a sentence shows."""

MAX_ADDRESS = 300
"""Characters of an address or a cause that a sentence shows."""

MAX_LISTED = 20
"""Values of a list that a sentence shows."""

JOINERS = "\u200c\u200d"
"""Format characters that Persian, Indic scripts and emoji need, and that change no direction."""


class Actor(Enum):
    """The person who must act on a sentence."""

    MAKER = "whoever made the export"
    OPERATOR = "the operator of the batch service"
    REQUESTER = "the administrator of BIOSPEX"
    NOBODY = "nobody"


class Words(str):
    """Text that this program wrote, for the middle of a sentence; it is not escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Sentence:
    """A failure or a warning.

    Attributes:
        code: stable, ``room.what-is-wrong``; people look it up and count it.
        template: what is wrong, where, and what to do. ``{name}`` is filled in by ``shown``;
            ``{name:long}`` allows an address, ``{name:bare}`` leaves
            the quotation marks out.
        actor: who must act.
        advice: what an operator does who sees it on the run page; empty for what the actor implies.
    """

    code: str
    template: str
    actor: Actor = Actor.MAKER
    advice: str = ""

    def __post_init__(self) -> None:
        if self.code in CATALOGUE:
            raise ValueError(f"Two sentences have the code {self.code}.")
        CATALOGUE[self.code] = self

    def __call__(self, **values: Any) -> "Said":
        """The sentence with its values.

        Args:
            values: text of other people, ``Words``, numbers, lists of them, or other sentences.

        Raises:
            KeyError: if the template names a value that is not given.
        """
        return Said(self, _FORMATTER.vformat(self.template, (), values))

    def __reduce__(self) -> Any:
        # Unpickled in another process, it is that process's own declaration.
        return _declared, (self.code,)


def _declared(code: str) -> Sentence:
    return CATALOGUE[code]


CATALOGUE: dict[str, Sentence] = {}
"""Every sentence that has been declared, by its code."""


@dataclass(frozen=True)
class Said:
    """A sentence about one export.

    Attributes:
        text: without the code, safe to show anywhere but in Markdown, which is escaped there.
    """

    sentence: Sentence
    text: str

    @property
    def code(self) -> str:
        return self.sentence.code

    def __str__(self) -> str:
        return f"{self.text} [{self.code}]"


def shown(text: str, limit: int = MAX_VALUE) -> str:
    """Foreign text in quotation marks: one line, at most ``limit`` characters, no hidden ones.

    A quotation mark inside is escaped, unless it stands between two letters: O'Brien.
    """
    cut = text[:limit]
    safe = "".join(
        r"\'" if letter == "'" and not _is_between_letters(cut, place) else _visible(letter)
        for place, letter in enumerate(cut)
    )
    return f"'{safe}{'…' if len(text) > limit else ''}'"


def escaped(text: str, limit: int = MAX_VALUE) -> str:
    """Foreign text without quotation marks: cut, and without characters that act or hide."""
    return "".join(map(_visible, text[:limit])) + ("…" if len(text) > limit else "")


def _visible(character: str) -> str:
    kind = unicodedata.category(character)
    acts = kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and character not in JOINERS)
    # U+FFFE, U+FFFF and their like are no characters: SQS and XML refuse them.
    if acts or ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF:
        return ascii(character)[1:-1]
    return character


def _is_between_letters(text: str, place: int) -> bool:
    return 0 < place < len(text) - 1 and text[place - 1].isalpha() and text[place + 1].isalpha()


class _Formatter(string.Formatter):
    """Fills templates; a template can neither index nor call what it is given."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        return kwargs[field_name], field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Said):
            return value.text
        if isinstance(value, Words):
            return str(value)
        if isinstance(value, int):
            return f"{value:,}" if format_spec != "bare" else str(value)
        if isinstance(value, str):
            if format_spec == "bare":
                return escaped(value, MAX_ADDRESS)
            return shown(value, MAX_ADDRESS if format_spec == "long" else MAX_VALUE)
        if isinstance(value, Sequence):
            inner = ", ".join(self.format_field(each, format_spec) for each in value[:MAX_LISTED])
            return inner + (", …" if len(value) > MAX_LISTED else "")
        return self.format_field(str(value), format_spec)


_FORMATTER = _Formatter()
