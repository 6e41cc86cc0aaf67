"""Streams the content of a tar file; a separate thread decompresses some chunks ahead."""

import bz2
import lzma
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from queue import Queue
from threading import Thread
from typing import IO, Any

from isal import igzip_lib

from splitter.archives.members import TOO_MUCH, ArchiveError
from splitter.archives.signatures import SIGNATURES
from splitter.archives.zstandard import zstd
from splitter.sentences import Actor, Problem, Sentence

CHUNK = 512 * 1024
"""Bytes read or decompressed at a time; docs/performance.md compares other sizes."""

CHUNKS_AHEAD = 8

LONGEST_WINDOW = 128 * 1024 * 1024
"""Bytes of memory for xz, as Zstandard has by default."""

BYTES_BEHIND_DATA = Sentence(
    "archive.bytes-behind-compressed-data",
    "Bytes follow the end of the compressed data; they were ignored.",
    Actor.NOBODY,
)


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
    magics = tuple(found.magic for found in SIGNATURES if found.suffix == compression)
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
                warnings.append(BYTES_BEHIND_DATA())
                return
            stream = DECOMPRESSORS[compression]()
        elif stream.needs_input:
            data = archive.read(CHUNK)
            if not data:
                raise EOFError("it ends before its compressed data does")


class Ahead:
    """A forward-only file for ``tarfile``, filled some chunks ahead by a thread."""

    def __init__(self, chunks: Iterator[bytes], max_size: int) -> None:
        self._chunks = chunks
        self._max_size = max_size
        self._queue: Queue[bytes | BaseException] = Queue(CHUNKS_AHEAD)
        self._chunk = memoryview(b"")
        self._position = 0
        self._at_end = False
        self._closed = False
        self._thread = Thread(target=self._fill, daemon=True)
        self._thread.start()

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

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer at the end."""
        taken = []
        while size and (chunk := self.take(size)):
            taken.append(chunk)
            size -= len(chunk)
        return b"".join(taken)

    def peek(self, length: int) -> bytes:
        """At least the next ``length`` bytes, without moving; fewer at the end."""
        peeked = bytes(self._chunk)
        while len(peeked) < length and (chunk := self._next()):
            peeked += chunk
        self._chunk = memoryview(peeked)
        return peeked

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
        self._closed = True
        while self._thread.is_alive():
            while not self._queue.empty():
                self._queue.get()
            self._thread.join(0.01)

    def _next(self) -> bytes:
        if self._at_end:
            return b""
        chunk = self._queue.get()
        if isinstance(chunk, BaseException):
            self._at_end = True
            raise chunk
        self._at_end = not chunk
        return chunk

    def _fill(self) -> None:
        size = 0
        try:
            for chunk in self._chunks:
                size += len(chunk)
                if size > self._max_size:
                    raise ArchiveError(TOO_MUCH, size=self._max_size)
                if self._closed:
                    return
                if chunk:
                    self._queue.put(chunk)
            self._queue.put(b"")
        except BaseException as error:
            self._queue.put(error)
