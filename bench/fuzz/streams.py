"""Compressed streams of ZIP members and tars, their mutations and their checks.

An input is a ZIP with one member, with size and checksum of the content before the mutation. The
result is compared with zlib's and the other usual libraries'.
"""

import bz2
import io
import lzma
import random
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import inflate64
from isal import isal_zlib

from bench.fuzz.mutations import UNREADABLE, BrokenPromiseError, cut, unless_refused
from splitter.archives import zip_records
from splitter.archives.signatures import SIGNATURES
from splitter.archives.zip_data import UNPACKERS
from splitter.archives.zip_index import local_header
from splitter.archives.zip_records import DEFLATE64, XZ, ZSTANDARD
from splitter.archives.zstandard import zstd
from tests.helpers.archives import FILES, index_of

MODIFIED = (2026, 11, 24, 0, 0, 0)

LZMA_HEADER = 9
"""Bytes in front of the stream (APPNOTE 5.8.8), all in the first piece."""

MOST_AT_ONCE = 8 * 1024 * 1024
"""Bytes that a decompressor may return at once."""


def _deflate(data: bytes, draws: random.Random) -> bytes:
    """Compress with any level and strategy, in one piece or with a flush."""
    if draws.random() < 0.2:
        return isal_zlib.compress(data, draws.randrange(4), -15)
    compressor = zlib.compressobj(
        draws.randrange(10), zlib.DEFLATED, -draws.randint(9, 15), draws.randint(1, 9),
        draws.choice([zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE,
                      zlib.Z_FIXED]),
    )  # fmt: skip
    middle = draws.randrange(len(data) + 1)
    flush = draws.choice([zlib.Z_NO_FLUSH, zlib.Z_PARTIAL_FLUSH, zlib.Z_SYNC_FLUSH,
                          zlib.Z_FULL_FLUSH, zlib.Z_BLOCK])  # fmt: skip
    start = compressor.compress(data[:middle]) + compressor.flush(flush)
    return start + compressor.compress(data[middle:]) + compressor.flush()


def _deflate64(data: bytes, draws: random.Random) -> bytes:
    deflater = inflate64.Deflater()
    return bytes(deflater.deflate(data) + deflater.flush())


def _bzip2(data: bytes, draws: random.Random) -> bytes:
    return _streams(data, draws, lambda part: bz2.compress(part, draws.randint(1, 9)))


def _xz(data: bytes, draws: random.Random) -> bytes:
    check = draws.choice([lzma.CHECK_NONE, lzma.CHECK_CRC32, lzma.CHECK_CRC64, lzma.CHECK_SHA256])
    return _streams(data, draws, lambda part: lzma.compress(part, check=check, preset=0))


def _zstandard(data: bytes, draws: random.Random) -> bytes:
    options = {int(zstd.CompressionParameter.checksum_flag): draws.randrange(2)}
    return _streams(data, draws, lambda part: zstd.compress(part, options=options))


def _streams(data: bytes, draws: random.Random, pack: Callable[[bytes], bytes]) -> bytes:
    middle = draws.choice([0, 0, draws.randrange(len(data) + 1)])
    return (pack(data[:middle]) if middle else b"") + pack(data[middle:])


def _lzma(data: bytes, draws: random.Random) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as target:
        target.writestr(zipfile.ZipInfo("a"), data, zipfile.ZIP_LZMA)
        info = target.infolist()[0]
    return stream.getvalue()[31 : 31 + info.compress_size]


PACKERS: Final[Mapping[int, Callable[[bytes, random.Random], bytes]]] = {
    zipfile.ZIP_STORED: lambda data, _: data,
    zipfile.ZIP_DEFLATED: _deflate,
    DEFLATE64: _deflate64,
    zipfile.ZIP_BZIP2: _bzip2,
    zipfile.ZIP_LZMA: _lzma,
    ZSTANDARD: _zstandard,
    XZ: _xz,
}
"""Compressors of all supported ZIP methods."""


def zip_by(
    method: int, files: Mapping[str, bytes], wrap: int = 2**64, draws: random.Random | None = None
) -> bytes:
    """A ZIP with members compressed by ``method``, and offsets and sizes modulo ``wrap``."""
    draws = draws or random.Random(0)
    body = bytearray()
    infos = []
    for name, data in files.items():
        packed = PACKERS[method](data, draws)
        info = zip_records.stored_member(name, len(data) % wrap, zlib.crc32(data), MODIFIED)
        info.compress_type, info.compress_size = method, len(packed) % wrap
        info.header_offset = len(body) % wrap
        body += zip_records.local_file_header(info) + packed
        infos.append(info)
    return bytes(body) + b"".join(zip_records.central_directory(infos, len(body) % wrap))


@cache
def contents() -> list[bytes]:
    draws = random.Random(0)
    words = [draws.randbytes(draws.randint(1, 9)) for _ in range(40)]
    text = b"".join(draws.choice(words) for _ in range(3000))
    return [
        *(b"", b"a", bytes(5), bytes(70_000), bytes(300_000), bytes(range(256)) * 4, text),
        *(draws.randbytes(100), draws.randbytes(70_000), *FILES.values()),
        b"".join(draws.choice([bytes(300), draws.randbytes(40), text[:900]]) for _ in range(150)),
    ]


def make_stream(draws: random.Random) -> bytes:
    methods = [*PACKERS, *[zipfile.ZIP_DEFLATED] * 6]
    method, content = draws.choice(methods), draws.choice(contents())
    packed = PACKERS[method](content, draws)
    for _ in range(draws.choice([0, 0, 1, 1, 1, 2, 5])):
        if draws.random() < 0.6 and packed:  # early damage is seen most often
            changed = bytearray(packed)
            position = draws.randrange(min(len(packed), draws.choice([8, 100, len(packed)])))
            changed[position] ^= 1 << draws.randrange(8)
            packed = bytes(changed)
        else:
            packed = cut(packed, draws)
    info = zip_records.stored_member("a", len(content), zlib.crc32(content), MODIFIED)
    info.compress_type, info.compress_size = method, len(packed)
    body = zip_records.local_file_header(info) + packed
    return body + b"".join(zip_records.central_directory([info], len(body)))


def check_stream(data: bytes, directory: Path) -> bool:
    """Whether the member is accepted. The usual library must read the same content."""
    index = unless_refused(lambda: index_of(data))
    if index is None or "a" not in index.members:  # possible in minimised inputs
        return False
    span = index.members["a"]
    size, method = span.info.file_size, span.info.compress_type
    header = unless_refused(lambda: local_header("a", span, index.read_at))
    if header is None:
        return False
    start = span.start + header[1]
    packed = data[start : start + span.info.compress_size]
    ours = unless_refused(lambda: b"".join(index.chunks("a")))
    if ours is not None and (len(ours), zlib.crc32(ours)) != (size, span.info.CRC):
        raise BrokenPromiseError("a size or checksum is not that of the archive")
    with suppress(*UNREADABLE):
        theirs = _by_their_library(method, packed, size + 1)
        sound = (len(theirs), zlib.crc32(theirs)) == (size, span.info.CRC)
        if size and sound and ours != theirs:  # damage to an empty stream may go unnoticed
            raise BrokenPromiseError(f"method {method} is not read like its library reads it")
    if ours is not None:
        for step in (1 + len(packed) // 50, 1 + len(packed) // 3, len(packed) + 1):
            if _outcome(method, packed, max(LZMA_HEADER, step), size) != ours:
                raise BrokenPromiseError(f"method {method} depends on the size of the pieces")
    return ours is not None


def _outcome(method: int, packed: bytes, step: int, size: int) -> bytes | None:
    """The content of ``packed``, read in pieces of ``step`` bytes; None if damaged or too long."""
    pieces = (packed[start : start + step] for start in range(0, len(packed), step))
    found = b""
    try:
        for piece in UNPACKERS[method](pieces, size):
            if len(piece) > MOST_AT_ONCE:
                raise BrokenPromiseError("a decompressor returns too much at once")
            found += piece
            if len(found) > size:
                return None
    except UNREADABLE:
        return None
    return found


def _by_their_library(method: int, packed: bytes, most: int) -> bytes:
    if method == zipfile.ZIP_STORED:
        return packed[:most]
    if method == zipfile.ZIP_DEFLATED:
        return _whole(lambda: zlib.decompressobj(-15), packed, most, lambda _: False)
    if method == zipfile.ZIP_LZMA and len(packed) > LZMA_HEADER:
        return bytes(cast("Any", zipfile).LZMADecompressor().decompress(packed))[:most]
    if method in (zipfile.ZIP_LZMA, DEFLATE64):
        raise EOFError  # for Deflate64 there is no other library
    make: dict[int, Callable[[], Any]] = {
        zipfile.ZIP_BZIP2: bz2.BZ2Decompressor,
        XZ: lzma.LZMADecompressor,
        ZSTANDARD: zstd.ZstdDecompressor,
    }
    return _whole(make[method], packed, most)


def whole_file(compression: str, data: bytes, most: int) -> bytes:
    """The content of all streams of a compressed file, up to other bytes.

    Raises:
        UNREADABLE: if a stream is damaged or ends early.
    """
    magics = next(found.magics for found in SIGNATURES if found.suffix == compression)
    make: Callable[[], Any] = {
        "gz": lambda: zlib.decompressobj(31),
        "bz2": bz2.BZ2Decompressor,
        "xz": lzma.LZMADecompressor,
        "zst": zstd.ZstdDecompressor,
    }[compression]
    return _whole(make, data, most, lambda rest: rest.lstrip(b"\0").startswith(magics))


def _whole(
    make: Callable[[], Any], data: bytes, most: int, goes_on: Callable[[bytes], bool] = bool
) -> bytes:
    """The first ``most`` bytes of the content of all streams."""
    found = bytearray()
    while True:
        decompressor = make()
        # Zstandard's library detects more damage without a limit.
        room = -1 if isinstance(decompressor, zstd.ZstdDecompressor) else most - len(found)
        found += decompressor.decompress(data, room)
        if len(found) >= most:
            return bytes(found)
        if not decompressor.eof:
            raise EOFError
        data = decompressor.unused_data
        if not goes_on(data):
            return bytes(found)
        if goes_on is not bool:  # zeros between the streams of a file are padding
            data = data.lstrip(b"\0")
