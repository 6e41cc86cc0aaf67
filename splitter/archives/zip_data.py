"""Unpacks a ZIP's member in pieces, with a decompressor for each method.

A piece has at most a few MiB, whatever the input. Section numbers refer to PKWARE's APPNOTE; see
``zip_records``.
"""

import bz2
import lzma
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_LZMA, ZIP_STORED, BadZipFile

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
"""Bytes passed to the decompressor of Deflate at a time. ISA-L's stream object could take a whole
block, but needs 1.5 times the processor time (November 2026)."""

FED_DEFLATE64 = 256
"""Bytes passed to the decompressor of Deflate64 at a time. It returns all output at once: up to
25,000 times its input."""

MOST_MEMORY = 256 * 1024 * 1024
"""Bytes of memory for a decompressor. The strongest presets need a quarter of it."""

Unpacker = Callable[[Iterable[bytes], int], Iterator[bytes]]
"""Takes the compressed bytes of a member, and the size of its content from the directory. Returns
the content, a few MiB at a time. Raises ``BadZipFile`` or an error of the decompressor for damaged
data; see ``damage.reading``."""


def method_name(method: int) -> str:
    return METHODS.get(method, "an unknown kind of compression")


def _deflated64(data: Iterable[bytes], size: int) -> Iterator[bytes]:
    inflater = inflate64.Inflater()
    for block in data:
        for start in range(0, len(block), FED_DEFLATE64):
            if inflater.eof:
                return
            yield inflater.inflate(block[start : start + FED_DEFLATE64])
    _check_end(inflater)


def _streams(make: Callable[[], Any], data: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The content of one or several streams, one after another."""
    decompressor = make()
    for block in data:
        while block or not (decompressor.eof or decompressor.needs_input):
            if decompressor.eof:
                decompressor = make()
            yield decompressor.decompress(block, CHUNK)
            block = decompressor.unused_data if decompressor.eof else b""
    _check_end(decompressor)


def _lzma(data: Iterable[bytes], size: int) -> Iterator[bytes]:
    # 4.4.4 and 5.8: a header with the properties, then a raw stream, whose end mark is optional.
    # Without the mark the decompressor would continue into the next bytes, so stop at the size.
    blocks = iter(data)
    first = next(blocks, None)
    if first is None:
        return
    if len(first) < 9 or first[2:4] != b"\5\0":  # the length of the properties
        raise BadZipFile("the header of its LZMA data is damaged")
    # As zipfile does.
    properties = lzma._decode_filter_properties(lzma.FILTER_LZMA1, first[4:9])  # type: ignore[attr-defined]
    # No reference can reach back beyond the start of the content.
    kept = properties["dict_size"] = max(4096, min(properties["dict_size"], size))
    if kept > MOST_MEMORY:
        raise BadZipFile(f"unpacking it takes {kept:,} bytes of memory")
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[properties])
    for block in chain([first[9:]], blocks):
        while size and not decompressor.eof and (block or not decompressor.needs_input):
            content = decompressor.decompress(block, min(size, CHUNK))
            size -= len(content)
            yield content
            block = b""


def _check_end(decompressor: Any) -> None:
    if not decompressor.eof:
        raise BadZipFile("its compressed data ends early")


def _deflated(data: Iterable[bytes], size: int) -> Iterator[bytes]:
    inflater = isal_zlib.decompressobj(wbits=-isal_zlib.MAX_WBITS)
    pieces = (block[at : at + FED] for block in data for at in range(0, len(block), FED))
    for piece in pieces:
        while not inflater.eof:
            content = inflater.decompress(piece, CHUNK)
            piece = inflater.unconsumed_tail
            if content:
                yield content
            if len(content) < CHUNK and not piece:
                break
        if inflater.eof:
            break
    _check_end(inflater)


def deflated_length(data: bytes) -> int:
    """The length of the Deflate stream at the start of ``data``, which must be complete."""
    inflater = isal_zlib.decompressobj(wbits=-isal_zlib.MAX_WBITS)
    rest = data
    while not inflater.eof and (inflater.decompress(rest, CHUNK) or inflater.unconsumed_tail):
        rest = inflater.unconsumed_tail
    return len(data) - len(inflater.unused_data)


UNPACKERS: dict[int, Unpacker] = {
    ZIP_STORED: lambda data, _: iter(data),
    ZIP_DEFLATED: _deflated,
    DEFLATE64: _deflated64,
    ZIP_BZIP2: partial(_streams, bz2.BZ2Decompressor),
    ZIP_LZMA: _lzma,
    ZSTANDARD: partial(_streams, zstd.ZstdDecompressor),  # limits its window to 128 MiB
    XZ: partial(_streams, partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, MOST_MEMORY)),
}
"""The supported methods by number."""
