"""Streams the content of a tar file; a separate thread decompresses some chunks ahead."""

import bz2
import lzma
import os
import tarfile
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf
from typing import IO, Any

from isal import igzip_lib

from splitter.archives.members import BYTES_BEHIND, TOO_MUCH, ArchiveError
from splitter.archives.signatures import SIGNATURES
from splitter.archives.zstandard import zstd
from splitter.sentences import Problem

CHUNK = 512 * 1024
"""Bytes read or decompressed at a time; docs/performance.md compares other sizes."""

CHUNKS_AHEAD = 8

LONGEST_WINDOW = 128 * 1024 * 1024
"""Bytes of memory for xz, as Zstandard has by default."""

DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gz": partial(igzip_lib.IgzipDecompressor, flag=igzip_lib.DECOMP_GZIP),
    "bz2": bz2.BZ2Decompressor,
    "xz": partial(lzma.LZMADecompressor, memlimit=LONGEST_WINDOW),
    "zst": zstd.ZstdDecompressor,  # limits its window to 128 MiB
}
"""Makes a decompressor for one stream of a file with this suffix, with the interface of ``bz2``."""


def decompressed(archive: IO[bytes], compression: str, warnings: list[Problem]) -> Iterator[bytes]:
    """The content of a compressed file, which may have several streams. Checksums are verified.

    Raises:
        EOFError, zlib.error, ...: if it is truncated or damaged; see ``damage.DAMAGE``.
    """
    magics = next(found.magics for found in SIGNATURES if found.suffix == compression)
    stream = DECOMPRESSORS[compression]()
    data = archive.read(CHUNK)
    while True:
        yield stream.decompress(data, CHUNK)
        data = b""
        if stream.eof:
            # Like gunzip: zeros after the end are padding, other bytes are ignored. More is read
            # only if little is left. Otherwise the rest of a file with many small streams, as bgzip
            # writes, would accumulate in memory.
            data = stream.unused_data.lstrip(b"\0")
            while len(data) < len(magics[0]) and (more := archive.read(CHUNK)):
                data = (data + more).lstrip(b"\0")
            if not data:
                return
            if not data.startswith(magics):
                start = archive.tell() - len(data)
                warnings.append(BYTES_BEHIND(size=archive.seek(0, os.SEEK_END) - start))
                return
            stream = DECOMPRESSORS[compression]()
        elif stream.needs_input:
            data = archive.read(CHUNK)
            if not data:
                raise EOFError("it ends before its compressed data does")


class Ahead:
    """A forward-only file for ``tarfile``, filled some chunks ahead by a thread.

    Attributes:
        header_left: bytes that ``read`` and ``peek`` may still return. ``tarfile`` reads headers of
            any size into memory.
    """

    def __init__(self, chunks: Iterator[bytes], max_size: int) -> None:
        self._chunks = _ahead(chunks)
        self._max_size = self._size_left = max_size
        self._chunk = memoryview(b"")
        self._position = 0
        self.header_left = inf

    def take(self, most: int) -> memoryview:
        """Up to ``most`` of the next bytes, without copying; none at the end.

        Raises:
            ArchiveError: above ``max_size`` bytes in total.
        """
        if not self._chunk:
            self._chunk = memoryview(self._next())
        taken, self._chunk = self._chunk[:most], self._chunk[most:]
        self._position += len(taken)
        return taken

    def peek(self, length: int) -> bytes:
        """The next ``length`` bytes, without moving; fewer at the end."""
        if not 0 <= length <= self.header_left:
            raise tarfile.ReadError("the headers of one file are too long")
        while len(self._chunk) < length and (more := self._next()):
            self._chunk = memoryview(bytes(self._chunk) + more)
        return bytes(self._chunk[:length])

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer at the end."""
        data = self.peek(size)
        self.header_left -= size
        self.seek(self._position + len(data))
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        """Skip forward to ``position``."""
        if position < self._position:
            raise tarfile.ReadError("its headers contradict each other")
        while self._position < position and self.take(position - self._position):
            pass
        return self._position

    def close(self) -> None:
        """Stop the thread."""
        self._chunks.close()

    def _next(self) -> bytes:
        chunk = next(self._chunks, b"")
        self._size_left -= len(chunk)
        if self._size_left < 0:
            raise ArchiveError(TOO_MUCH, size=self._max_size)
        return chunk


def _ahead(chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
    """``chunks`` without the empty ones; a thread makes some in advance."""
    filled = filter(None, chunks)
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, filled, b"") for _ in range(CHUNKS_AHEAD))
        try:
            while chunk := waiting.popleft().result():
                waiting.append(pool.submit(next, filled, b""))
                yield chunk
        finally:
            pool.shutdown(cancel_futures=True)
