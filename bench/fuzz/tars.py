"""Tars with sparse files in every format, cut at every block, and mutated.

https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html
"""

import gzip
import random
import tarfile
from collections.abc import Sequence
from functools import cache

from bench.fuzz.archives import change_tar, checksummed, cut_or_mix
from bench.fuzz.mutations import mutated
from tests.helpers.archives import FILES, tar_of

BLOCK = 512
PIECE = 700
"""Bytes of each piece of a sparse file, and of the hole after it."""

IN_HEADER = 4
IN_EXTENSION = 21
"""Pieces in an old GNU header, and in an extension block."""


def old_gnu(pieces: int) -> bytes:
    """A sparse file in GNU tar's own format."""
    places = [number * 2 * PIECE for number in range(pieces)]
    fields = [b"%011o\0%011o\0" % (place, PIECE) for place in places]
    info = tarfile.TarInfo("sparse.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, pieces * PIECE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    first, rest = fields[:IN_HEADER], fields[IN_HEADER:]
    header[386 : 386 + 24 * len(first)] = b"".join(first)
    header[482] = bool(rest)
    header[483:495] = b"%011o\0" % (pieces * 2 * PIECE)
    written = bytes(checksummed(header, 0))
    while rest:
        some, rest = rest[:IN_EXTENSION], rest[IN_EXTENSION:]
        written += b"".join(some).ljust(504, b"\0") + bytes([bool(rest)]) + bytes(7)
    return written + _padded(_content(pieces))


def pax(pieces: int, version: str) -> bytes:
    """A sparse file in one of the formats of GNU tar's ``--posix``."""
    places = [(number * 2 * PIECE, PIECE) for number in range(pieces)]
    headers = {"GNU.sparse.name": "sparse.jpg"}
    content = _content(pieces)
    size = str(pieces * 2 * PIECE)
    numbers = ",".join(f"{place},{length}" for place, length in places)
    match version:
        case "0.0":  # with repeated keys, which tarfile does not write
            records = _records([("GNU.sparse.size", size), ("GNU.sparse.numblocks", str(pieces))])
            for place, length in places:
                records += _records(
                    [("GNU.sparse.offset", str(place)), ("GNU.sparse.numbytes", str(length))]
                )
            return _member("pax", records, tarfile.XHDTYPE) + _member("sparse.jpg", content)
        case "0.1":
            headers |= {"GNU.sparse.size": size, "GNU.sparse.map": numbers}
        case _:
            headers |= {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
            headers |= {"GNU.sparse.realsize": size}
            lines = [str(pieces), *numbers.split(",")]
            content = _padded("".join(f"{line}\n" for line in lines).encode()) + content
    records = _records(list(headers.items()))
    return _member("pax", records, tarfile.XHDTYPE) + _member("GNUSparseFile.1/sparse.jpg", content)


def _records(pairs: Sequence[tuple[str, str]]) -> bytes:
    written = b""
    for key, value in pairs:
        rest = f" {key}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        written += str(length).encode() + rest
    return written


def _member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + _padded(content)


def _content(pieces: int) -> bytes:
    return b"".join(bytes([65 + number % 26]) * PIECE for number in range(pieces))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


@cache
def sparse_tars() -> list[bytes]:
    """Small exports with one sparse file, first or last."""
    files = tar_of(FILES, tarfile.GNU_FORMAT)
    ends = _padded(files.rstrip(b"\0"))
    members = [old_gnu(pieces) for pieces in (1, 4, 5, 25, 26, 70)]
    members += [pax(pieces, version) for version in ("0.0", "0.1", "1.0") for pieces in (1, 5, 70)]
    return [tar for member in members for tar in (member + files, ends + member + bytes(1024))]


def make_tar(draws: random.Random) -> bytes:
    """A tar with a sparse file, whole or cut at a block, with up to six mutations."""
    data = draws.choice(sparse_tars())
    if draws.random() < 0.7:
        data = data[: BLOCK * draws.randrange(len(data) // BLOCK + 1)]
    if draws.random() < 0.5:
        data = mutated(data, draws, [change_tar, change_tar, cut_or_mix])
    return gzip.compress(data, 1, mtime=0) if draws.random() < 0.5 else data
