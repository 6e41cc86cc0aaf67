"""The content of a tar file as a stream: decompressed by a thread of its own, some chunks ahead."""

import bz2
import lzma
import tarfile
from collections.abc import Iterator
from queue import Queue
from threading import Thread
from typing import IO, Protocol, cast

from isal import igzip_lib

from splitter.archives.members import TOO_MUCH, ArchiveError
from splitter.archives.signatures import SIGNATURES
from splitter.archives.zstandard import zstd
from splitter.sentences import Actor, Sentence

CHUNK = 512 * 1024
"""Bytes read, or decompressed, at a time; docs/performance.md has the times of other sizes."""

CHUNKS_AHEAD = 8

LONGEST_WINDOW = 128 * 1024 * 1024
"""Bytes of memory that xz and Zstandard may take, as much as in their own tools by default."""

BYTES_BEHIND_DATA = Sentence(
    "archive.bytes-behind-compressed-data",
    "Bytes follow the end of the compressed data; they were ignored.",
    Actor.NOBODY,
)


class Decompressor(Protocol):
    """The methods that bz2, lzma, zstd and igzip_lib have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def decompressor(compression: str) -> Decompressor:
    """A decompressor for one stream of a compressed file, by the file's suffix."""
    match compression:
        case "gz":
            return cast("Decompressor", igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP))
        case "bz2":
            return bz2.BZ2Decompressor()
        case "xz":
            return lzma.LZMADecompressor(memlimit=LONGEST_WINDOW)
        case _:
            longest = LONGEST_WINDOW.bit_length() - 1
            options = {int(zstd.DecompressionParameter.window_log_max): longest}
            return zstd.ZstdDecompressor(options=options)


def uncompressed(archive: IO[bytes]) -> Iterator[bytes]:
    """The content of a file that is not compressed."""
    while chunk := archive.read(CHUNK):
        yield chunk


def decompressed(archive: IO[bytes], compression: str, warnings: list[str]) -> Iterator[bytes]:
    """The content of a compressed file of one or several streams, each checked.

    Raises:
        EOFError, zlib.error, ...: if it is truncated or damaged; see ``damage.DAMAGE``.
    """
    magics = tuple(found.magic for found in SIGNATURES if found.suffix == compression)
    stream = decompressor(compression)
    data = archive.read(CHUNK)
    while True:
        yield stream.decompress(data, CHUNK)
        data = b""
        if stream.eof:
            # As gunzip does: zeros behind the end are padding, other bytes are ignored. More is
            # read only where little is left, or the rests of many small streams, as bgzip writes
            # them, would add up in memory.
            data = stream.unused_data.lstrip(b"\0")
            while len(data) < len(magics[0]) and (more := archive.read(CHUNK)):
                data = (data + more).lstrip(b"\0")
            if not data:
                return
            if not data.startswith(magics):
                warnings.append(str(BYTES_BEHIND_DATA()))
                return
            stream = decompressor(compression)
        elif stream.needs_input:
            data = archive.read(CHUNK)
            if not data:
                raise EOFError("it ends before its compressed data does")


class Ahead:
    """A file for ``tarfile``, which a thread fills some chunks ahead.

    It only goes forward, as ``tarfile`` does while it reads one member after the other.
    """

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
        """Up to ``most`` of the next bytes, in the pieces of the source; none at the end.

        Raises:
            ArchiveError: if all of them together are too many.
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
        """At least ``length`` of the next bytes, if there are so many."""
        peeked = bytes(self._chunk)
        while len(peeked) < length and (chunk := self._next()):
            peeked += chunk
        self._chunk = memoryview(peeked)
        return peeked

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        """Skip the bytes up to ``position``."""
        if position < self._position:
            raise tarfile.ReadError("its headers contradict each other")
        while self._position < position and self.take(position - self._position):
            pass
        return self._position

    def close(self) -> None:
        """End the thread, at any position."""
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
