"""The catalogue of sentences: each failure and each warning is declared once, where it is raised.

Only this module fills in values. It cuts, escapes and quotes text that others wrote, so that the
text is harmless in a log, a database, a mail and a terminal, and cannot look like our own words.
"""

import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

MAX_VALUE = 80
"""Characters shown of a foreign value."""

MAX_ADDRESS = 300
"""Characters shown of an address or a cause."""

MAX_LISTED = 20
"""Values shown of a list."""

MAX_CASES = 3
"""Cases of one kind that a sentence names."""

JOINERS = "\u200c\u200d"
"""Format characters of Persian, Indic scripts and emoji. They do not change the text direction."""


class Actor(Enum):
    """The person who must act on a sentence."""

    MAKER = "whoever made the export"
    OPERATOR = "the operator of the batch service"
    REQUESTER = "the administrator of BIOSPEX"
    NOBODY = "nobody"


DEFAULT_ADVICE = {
    Actor.MAKER: "Send this sentence to whoever made the export. When you have their corrected "
    "archive, copy it over the old one (`aws s3 cp`, same key), then press Retry.",
    Actor.OPERATOR: "Correct the installation as the sentence says, then press Retry.",
    Actor.REQUESTER: "Send this sentence to the administrator of BIOSPEX, who sends a corrected "
    "request.",
    Actor.NOBODY: "Nothing has to be done.",
}
"""The operator's action for a sentence without advice of its own."""


class Words(str):
    """Our own text for the middle of a sentence, which is not escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Sentence:
    """A failure or a warning.

    Attributes:
        code: stable, ``room.problem``; people search for it and count it.
        template: the problem, its place and the remedy. ``{name}`` is quoted, ``{name:long}`` has
            room for an address, ``{name:bare}`` omits the quotation marks. ``{name:row is|rows
            are}`` is a number and its noun.
        actor: the person who must act.
        advice: the operator's action; empty for the actor's in ``DEFAULT_ADVICE``.
    """

    code: str
    template: str
    actor: Actor = Actor.MAKER
    advice: str = ""

    def __post_init__(self) -> None:
        if self.code in CATALOGUE:
            raise ValueError(f"Two sentences have the code {self.code}.")
        CATALOGUE[self.code] = self

    def __call__(self, **values: Any) -> "Problem":
        """Fill in foreign text, ``Words``, numbers, lists of these, or other sentences."""
        text = _FORMATTER.vformat(self.template, (), values)
        return Problem(self, text, self.advice or DEFAULT_ADVICE[self.actor])

    def __reduce__(self) -> Any:
        # Unpickling in another process returns that process's declaration.
        return _declared, (self.code,)


def _declared(code: str) -> Sentence:
    return CATALOGUE[code]


CATALOGUE: dict[str, Sentence] = {}
"""All declared sentences by code."""


@dataclass(frozen=True)
class Problem:
    """A sentence with its values filled in: a failure or warning of one export.

    Attributes:
        text: without the code; safe everywhere except in Markdown, which is escaped separately.
        advice: the operator's action.
    """

    sentence: Sentence
    text: str
    advice: str

    @property
    def code(self) -> str:
        return self.sentence.code

    @property
    def actor(self) -> Actor:
        return self.sentence.actor

    def __str__(self) -> str:
        return f"{self.text} [{self.code}]"


class Cases:
    """Counts the cases of one kind and keeps the first ones for a sentence."""

    def __init__(self) -> None:
        self.number = 0
        self._first: list[str] = []

    def add(self, case: str = "", where: str = "") -> None:
        """Count a case.

        Args:
            case: foreign text.
            where: our own words behind it.
        """
        self.number += 1
        if len(self._first) < MAX_CASES:
            self._first.append(escaped(case) + where)

    def values(self, separator: str = ", ") -> dict[str, Any]:
        """The values of a sentence with the placeholders ``number`` and ``first``."""
        more = ["…"] if self.number > len(self._first) else []
        return {"number": self.number, "first": Words(separator.join(self._first + more))}


def shown(text: str, limit: int = MAX_VALUE) -> str:
    """Foreign text in quotation marks: one line of visible characters, cut at ``limit``.

    Escapes quotation marks, except between two letters, as in O'Brien.
    """
    if "'" not in text:
        return f"'{escaped(text, limit)}'"
    cut = text[:limit]
    safe = "".join(
        r"\'" if letter == "'" and not _is_between_letters(cut, place) else _visible(letter)
        for place, letter in enumerate(cut)
    )
    return f"'{safe}{'…' if len(text) > limit else ''}'"


def escaped(text: str, limit: int = MAX_VALUE) -> str:
    """Foreign text without control and invisible characters, cut at ``limit``."""
    cut = text[:limit]
    is_harmless = cut.isascii() and cut.isprintable()  # the usual case, and much faster
    safe = cut if is_harmless else "".join(map(_visible, cut))
    return safe + ("…" if len(text) > limit else "")


def _visible(character: str) -> str:
    kind = unicodedata.category(character)
    acts = kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and character not in JOINERS)
    # SQS and XML refuse noncharacters such as U+FFFE and U+FFFF.
    if acts or ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF:
        return ascii(character)[1:-1]
    return character


def _is_between_letters(text: str, place: int) -> bool:
    return 0 < place < len(text) - 1 and text[place - 1].isalpha() and text[place + 1].isalpha()


class _Formatter(string.Formatter):
    """Fills templates, without access to attributes and indexes of the values."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        return kwargs[field_name], field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Problem):
            return value.text
        if isinstance(value, Words):
            return str(value)
        if isinstance(value, int):
            if "|" in format_spec:
                one, many = format_spec.split("|")
                return f"{value:,} {one if value == 1 else many}"
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
