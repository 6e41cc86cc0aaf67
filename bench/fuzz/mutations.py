"""Mutations of any input, and the error for a failed check."""

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from splitter.archives.damage import DAMAGE
from splitter.errors import ExportError

MOST_BYTES = 512 * 1024

WORDS: Final = [
    *(0, 1, 2, 8, 9, 12, 14, 20, 45, 0x800, 0x801, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 2**31 - 1),
    *(2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**33, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
]
NAMES: Final = [
    *("a.jpg", "A.JPG", "manifest.csv", "x/manifest.csv", "x.csv", "../a.jpg", "/etc/x", "c:x"),
    *("", ".", "./", "./.", "a/../b", "a\\b", "a\0b", "a\nb", "é.jpg", "\u202e.jpg", "x" * 300),
    *("b.jpg", "c.jpg", "d.jpg", "a/.", "e\u0301.jpg"),
    *("__MACOSX/a", ".DS_Store", "._a.jpg", "dir/", "././a.jpg", "a//b.jpg", "CON", "a.jpg/b.jpg"),
]

UNREADABLE: Final[tuple[type[Exception], ...]] = (*DAMAGE, OSError, struct.error, MemoryError)
"""The exceptions of libraries for invalid data."""


class BrokenPromiseError(Exception):
    """A failed check; the message names it."""


def mutated(
    data: bytes, draws: random.Random, ways: Sequence[Callable[[bytes, random.Random], bytes]]
) -> bytes:
    for _ in range(draws.choice([0, 1, 1, 1, 2, 2, 3, 6])):
        data = draws.choice(ways)(data, draws)[:MOST_BYTES]
    return data


def cut(data: bytes, draws: random.Random, others: Sequence[bytes] = (b"",)) -> bytes:
    """A file that is cut, partly doubled, mixed with another, or has changed bytes."""
    start, end = sorted((draws.randrange(len(data) + 1), draws.randrange(len(data) + 1)))
    match draws.randrange(9):
        case 0:
            return data[:start]
        case 1:
            return data[start:]
        case 2:
            return data[:start] + data[end:]
        case 3:
            return data[:end] + data[start:]
        case 4:
            other = draws.choice(others)
            return data[:start] + other[draws.randrange(len(other) + 1) :]
        case 5:
            return data + draws.choice([data, b"\0", bytes(512), draws.choice(others)])
        case 6:
            return data[:start] + draws.randbytes(draws.randint(1, 40)) + data[start:]
        case 7:
            last = max(0, len(data) - draws.randint(1, 30))  # gzip's trailer, a ZIP's last record
            return data[:last] + bytes(byte ^ draws.getrandbits(8) for byte in data[last:])
    changed = bytearray(data)
    for _ in range(draws.randint(1, 4)):
        if changed:
            changed[draws.randrange(len(changed))] ^= 1 << draws.randrange(8)
    return bytes(changed)


def unless_refused(read: Callable[[], Any]) -> Any:
    """The result, or None for an ``ExportError``."""
    try:
        return read()
    except ExportError as error:
        if not str(error):
            raise BrokenPromiseError("an input is refused without a sentence") from error
        return None
