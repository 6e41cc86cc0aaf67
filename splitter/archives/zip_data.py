"""Unpacks a ZIP's member in pieces, with a decompressor for each method.

A piece has at most a few MiB, whatever the input. Section numbers refer to PKWARE's APPNOTE; see
``zip_records``.
"""

import bz2
import lzma
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_LZMA, ZIP_STORED

import inflate64
from isal import isal_zlib

from splitter.archives.members import CHUNK
from splitter.archives.zip_records import AES, DEFLATE64, XZ, ZSTANDARD
from splitter.archives.zstandard import zstd

# Methods that programs of today write: 4.4.5, and for WinZip
# https://www.winzip.com/en/support/compression-methods/.
METHODS = {
    DEFLATE64: "Deflate64",
    ZIP_BZIP2: "bzip2",
    ZIP_LZMA: "LZMA",
    ZSTANDARD: "Zstandard",
    XZ: "xz",
    96: "JPEG by WinZip",
    97: "WavPack by WinZip",
    98: "PPMd",
    AES: "encryption by AES",
}

FED = 128 * 1024
"""Bytes passed to a decompressor at a time; docs/performance.md compares other sizes."""

FED_DEFLATE64 = 256
"""The same for Deflate64, whose decompressor returns all output at once: up to 25,000 times its
input."""

MOST_MEMORY = 256 * 1024 * 1024
"""Bytes of memory for a decompressor. The strongest presets need a quarter of it."""


class DataError(ValueError):
    """Invalid compressed data."""


def method_name(method: int) -> str:
    return METHODS.get(method, "an unknown kind of compression")


Fed = Callable[[int], Iterable[bytes]]
"""Returns the compressed bytes of a member in pieces of the given length."""


def _stored(fed: Fed, size: int) -> Iterator[bytes]:
    yield from fed(CHUNK)


def _deflated(fed: Fed, size: int) -> Iterator[bytes]:
    inflater = isal_zlib.decompressobj(wbits=-isal_zlib.MAX_WBITS)
    for piece in fed(FED):
        while not inflater.eof:
            content = inflater.decompress(piece, CHUNK)
            piece = inflater.unconsumed_tail
            if content:
                yield content
            if len(content) < CHUNK and not piece:
                break
        if inflater.eof:
            break
    _check_end(inflater.eof)


def deflated_length(data: bytes) -> int:
    """The length of the Deflate stream at the start of ``data``, which must be complete."""
    inflater = isal_zlib.decompressobj(wbits=-isal_zlib.MAX_WBITS)
    rest = data
    while not inflater.eof and (inflater.decompress(rest, CHUNK) or inflater.unconsumed_tail):
        rest = inflater.unconsumed_tail
    return len(data) - len(inflater.unused_data)


def _deflated64(fed: Fed, size: int) -> Iterator[bytes]:
    inflater = inflate64.Inflater()
    for piece in fed(FED_DEFLATE64):
        if inflater.eof:
            return
        yield inflater.inflate(piece)
    _check_end(inflater.eof)


def _streams(make: Callable[[], Any], fed: Fed, size: int) -> Iterator[bytes]:
    """The content of one or several streams, one after another."""
    decompressor = make()
    begun = False
    for piece in fed(FED):
        while piece or (begun and not decompressor.eof and not decompressor.needs_input):
            if decompressor.eof:
                decompressor = make()
            begun = True
            yield decompressor.decompress(piece, CHUNK)
            piece = decompressor.unused_data if decompressor.eof else b""
    _check_end(decompressor.eof)


def _lzma(fed: Fed, size: int) -> Iterator[bytes]:
    # 4.4.4 and 5.8: a header with the properties, then a raw stream, whose end mark is optional.
    # Without the mark the decompressor would continue into the next bytes, so stop at the size.
    decompressor: lzma.LZMADecompressor | None = None
    left = size
    for piece in fed(FED):
        if decompressor is None:
            if len(piece) < 9 or piece[2:4] != b"\5\0":  # the length of the properties
                raise DataError("the header of its LZMA data is damaged")
            # As zipfile does.
            properties = lzma._decode_filter_properties(lzma.FILTER_LZMA1, piece[4:9])  # type: ignore[attr-defined]
            # No reference can reach back beyond the start of the content.
            kept = properties["dict_size"] = max(4096, min(properties["dict_size"], size))
            if kept > MOST_MEMORY:
                raise DataError(f"unpacking it takes {kept:,} bytes of memory")
            decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[properties])
            piece = piece[9:]
        while left and not decompressor.eof and (piece or not decompressor.needs_input):
            content = decompressor.decompress(piece, min(left, CHUNK))
            left -= len(content)
            yield content
            piece = b""


def _check_end(reached: bool) -> None:
    if not reached:
        raise DataError("its compressed data ends early")


UNPACKERS: dict[int, Callable[[Fed, int], Iterator[bytes]]] = {
    ZIP_STORED: _stored,
    ZIP_DEFLATED: _deflated,
    DEFLATE64: _deflated64,
    ZIP_BZIP2: partial(_streams, bz2.BZ2Decompressor),
    ZIP_LZMA: _lzma,
    ZSTANDARD: partial(_streams, zstd.ZstdDecompressor),  # limits its window to 128 MiB
    XZ: partial(_streams, partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, MOST_MEMORY)),
}
"""The supported methods by number.

Each function yields the content of a member, a few MiB at a time. It takes ``Fed`` and the bytes of
the content from the directory. For damaged data it raises ``DataError`` or an error of the
decompressor; see ``damage.reading``.
"""
