"""A tar, compressed or not, read once from front to end into a store.

Formats: POSIX.1-2017 (pax and ustar), GNU tar's extensions and Unix V7, as ``tarfile`` reads them.
"""

import bz2
import lzma
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from queue import Queue
from threading import Thread
from typing import IO, Protocol, Self, cast

from isal import igzip_lib, isal_zlib

from splitter.archives.formats import BLOCK, COMPRESSED, Format, check_tar, is_tar
from splitter.archives.members import (
    DAMAGE,
    DEVICE,
    LINK,
    ArchiveError,
    DosDateTime,
    Member,
    Names,
    cause,
    plain,
    reading,
    too_much,
)
from splitter.archives.zstandard import zstd
from splitter.errors import ExportError
from splitter.sentences import Actor, Sentence
from splitter.wording import count

CHUNK = 512 * 1024
"""Bytes read, or decompressed, at a time; docs/performance.md has what other sizes take."""

CHUNKS_AHEAD = 8

LONGEST_EXTENSION_HEADER = 1024 * 1024
"""Bytes of a header that only speaks of the next member: its long name, its PAX attributes. macOS
keeps a file's resource fork there."""

EXTENSION_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

LONGEST_GLOBAL_HEADER = 64 * 1024
"""Bytes of one that speaks of all members: ``tarfile`` copies what it holds for each of them."""

MOST_EXTENSION_HEADERS = 16
"""In front of one member; all of them are in memory at a time."""

MULTI_VOLUME = b"M"  # GNU tar: the rest of a file that began on another volume

LONGEST_WINDOW = 128 * 1024 * 1024
"""Bytes of memory that xz and Zstandard may take: what their own tools take by default."""

RECORD = 20 * BLOCK
"""Bytes that tar programs write at a time (POSIX.1-2017, pax, -b); behind the end they are
undefined."""

LONGEST_NUMBER = 64
"""Digits in a row within PAX attributes; a size or a time has about 20."""

DIGITS_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")

MOST_PIECES = 10_000
"""Of a sparse file: ``tarfile`` holds their places in memory."""

SPARSE = Sentence(
    "archive.sparse-file",
    "The archive holds {name} incomplete, as a sparse file that cannot be read here; pack the "
    "export again by GNU tar without --sparse, or as a ZIP.",
)
NO_END = Sentence(
    "archive.tar-without-end",
    "The tar ends behind a file, without the zeros that mark its end. Every file that the manifest "
    "names is there; files that no row names may be missing.",
    Actor.NOBODY,
)

DEAD_LINK = (
    "is a hard link to a file that does not stand before it in the archive, or stands there more "
    "than once; pack the files themselves"
)


def extract_tar(
    archive: IO[bytes],
    format: Format,
    output: IO[bytes],
    progress: Callable[[int], object],
    names: Names,
    max_size: int,
) -> tuple[dict[str, Member], list[str]]:
    """Write the content of every file to ``output``, one after the other.

    Decompression runs in a thread of its own, beside reading the tar, checksums and writing.

    Args:
        progress: told the number of bytes written since the last call.
        names: takes the names, and what is unusable.
        max_size: bytes that the archive may unpack to.

    Returns:
        The files by name, and warnings, one sentence each.

    Raises:
        ArchiveError: if it is damaged or truncated, unpacks to too much, or is not one whole tar.
    """
    warnings: list[str] = []
    compression = format.partition(".")[2]
    chunks = _decompressed(archive, compression, warnings) if compression else _plain(archive)
    with reading(), closing(_Ahead(chunks, max_size)) as stream:
        if compression:
            check_tar(stream.peek(BLOCK), compression)
        source = _Tar(fileobj=cast("IO[bytes]", stream), tarinfo=_Header, encoding="utf-8")
        members = _members(source, stream, output, progress, names, max_size)
        if source.lacks_end:
            warnings.append(str(NO_END()))
        _check_rest(stream, warnings)
    return members, warnings


def check_start(start: bytes, format: Format) -> None:
    """Refuse a compressed file that holds no tar, as far as its first bytes tell.

    Raises:
        ArchiveError: with what it holds instead.
    """
    if compression := format.partition(".")[2]:
        content = b""
        with suppress(*DAMAGE, OSError):  # which is told of when all is read
            content = _decompressor(compression).decompress(start, BLOCK)
        if len(content) >= BLOCK:
            check_tar(content, compression)


def _members(
    source: "_Tar",
    stream: "_Ahead",
    output: IO[bytes],
    progress: Callable[[int], object],
    names: Names,
    max_size: int,
) -> dict[str, Member]:
    members: dict[str, Member] = {}
    end = linked = 0
    while info := source.next():
        source.members = []  # type: ignore[attr-defined]  # or it keeps them all, attributes too
        if any(key.startswith("GNU.sparse.") for key in info.pax_headers) and (
            "size" in info.pax_headers or not info.issparse()
        ):
            # tarfile takes one size for the other, and then the map for the content.
            raise ArchiveError(SPARSE, name=info.name)
        if info.size < 0:
            raise tarfile.ReadError("a file of negative size")
        # A sparse file takes no room in the archive. And tarfile goes on to the next header in
        # small steps, however far behind the archive's end it is said to be.
        if max(end + linked + info.size, source.offset) > max_size:
            raise too_much(max_size)
        if info.type == MULTI_VOLUME:
            raise ArchiveError(
                "The export is one volume of a tar that was split into several; pack it again as "
                "a single file."
            )
        linked_to = plain(info.linkname) if info.islnk() else ""
        target = None if linked_to in names.unusable else members.get(linked_to)
        name = names.claim(info.name, not _is_file(info), _why_not(info, target))
        if name is None:
            continue
        if target:
            # GNU tar stores a file that has two names once; this is its second name.
            linked += target.size
            members[name] = target
            if end + linked > max_size:
                raise too_much(max_size)
            continue
        crc = 0
        for chunk in _content(info, name, source, stream):
            output.write(chunk)
            crc = isal_zlib.crc32(chunk, crc)
            progress(len(chunk))
        members[name] = Member(end, info.size, crc, _dos_date_time(info.mtime))
        end += info.size
    return members


def _content(
    info: tarfile.TarInfo, name: str, source: tarfile.TarFile, stream: "_Ahead"
) -> Iterator[bytes | memoryview]:
    try:
        with reading():
            if info.issparse():
                content = cast("IO[bytes]", source.extractfile(info))
                yield from iter(partial(content.read, CHUNK), b"")
                return
            # tarfile would copy every byte six times.
            left = info.size
            while left:
                chunk = stream.take(left)
                if not chunk:
                    raise tarfile.ReadError("unexpected end of data")
                left -= len(chunk)
                yield chunk
    except ArchiveError as error:
        if error.__cause__ is None:  # not damage
            raise
        what = cause(str(error.__cause__))
        raise ArchiveError(
            f"The archive is damaged or incomplete: '{name[:80]}' cannot be unpacked ({what}); "
            "export it again."
        ) from error


def _is_file(info: tarfile.TarInfo) -> bool:
    """Whether a row could name the member; folders, volume labels and listings are not meant."""
    return info.isreg() or info.issym() or info.islnk() or info.isdev()


def _why_not(info: tarfile.TarInfo, target: Member | None) -> str | None:
    if info.issym():
        return LINK
    if info.isdev():
        return DEVICE
    return DEAD_LINK if info.islnk() and target is None else None


def _check_rest(stream: "_Ahead", warnings: list[str]) -> None:
    """Read what follows a tar's end, for the checksum behind it, and see that nothing is lost.

    Up to the end of its record there may be what the writer's buffer held before, headers too:
    Apache Ant and old Java programs leave it there.
    """
    record = stream.read(-stream.tell() % RECORD)
    old = record.lstrip(b"\0")
    seen = b""
    extra = len(record)
    while chunk := stream.read(CHUNK):
        extra += len(chunk)
        chunk = seen + chunk if seen else chunk.lstrip(b"\0")
        seen = chunk[:BLOCK]
    if not seen and (not old or stream.tell() % RECORD == 0):
        return
    if is_tar(seen) or is_tar(old):
        raise ArchiveError(
            "The export is two tar archives, one behind the other, of which most programs read "
            "only the first; unpack both and make one ordinary ZIP of what they hold."
        )
    follow = count(extra, "byte follows", "bytes follow")
    warnings.append(f"{follow} the archive's end, and nothing was made of that.")


class _Decompressor(Protocol):
    """What bz2, lzma, zstd and igzip_lib have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def _decompressor(compression: str) -> _Decompressor:
    match compression:
        case "gz":
            return cast("_Decompressor", igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP))
        case "bz2":
            return bz2.BZ2Decompressor()
        case "xz":
            return lzma.LZMADecompressor(memlimit=LONGEST_WINDOW)
        case _:
            longest = LONGEST_WINDOW.bit_length() - 1
            options = {int(zstd.DecompressionParameter.window_log_max): longest}
            return zstd.ZstdDecompressor(options=options)


def _plain(archive: IO[bytes]) -> Iterator[bytes]:
    while chunk := archive.read(CHUNK):
        yield chunk


def _decompressed(archive: IO[bytes], compression: str, warnings: list[str]) -> Iterator[bytes]:
    """The content of a compressed file of one or several streams, each checked.

    Raises:
        EOFError, and what the decompressors raise: if it is truncated or damaged.
    """
    magics = tuple(magic for magic, of in COMPRESSED.items() if of == compression)
    decompressor = _decompressor(compression)
    data = archive.read(CHUNK)
    while True:
        yield decompressor.decompress(data, CHUNK)
        data = b""
        if decompressor.eof:
            # As gunzip does: zeros behind the end are padding, other bytes are passed over.
            # More is read only where little is left: what many small streams (as bgzip writes them)
            # leave over would add up.
            data = decompressor.unused_data.lstrip(b"\0")
            while len(data) < len(magics[0]) and (more := archive.read(CHUNK)):
                data = (data + more).lstrip(b"\0")
            if not data:
                return
            if not data.startswith(magics):
                warnings.append("Bytes follow the end of the compressed data; they were ignored.")
                return
            decompressor = _decompressor(compression)
        elif decompressor.needs_input:
            data = archive.read(CHUNK)
            if not data:
                raise EOFError("it ends before its compressed data does")


class _Ahead:
    """A file, as far as ``tarfile`` needs one, that a thread fills some chunks ahead.

    It only goes forward, as ``tarfile`` does that is asked for one member after the other.
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
        """Up to ``most`` of the next bytes, as they have come; none at the end.

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
        if position < self._position:
            raise tarfile.ReadError("its headers contradict each other")
        while self._position < position and self.take(position - self._position):
            pass
        return self._position

    def close(self) -> None:
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
                    raise too_much(self._max_size)
                if self._closed:
                    return
                if chunk:
                    self._queue.put(chunk)
            self._queue.put(b"")
        except BaseException as error:
            self._queue.put(error)


class _Header(tarfile.TarInfo):
    """A member's header; ``tarfile`` itself takes a damaged or missing one for the tar's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if buf[257:265] == tarfile.GNU_MAGIC and header.type not in tarfile.GNU_TYPES:
            # Where POSIX has the start of a long name, GNU's own format has times, if any:
            # https://www.gnu.org/software/tar/manual/html_node/Standard.html
            prefix = bytes(buf[345:500]).partition(b"\0")[0].decode(encoding, errors)
            if prefix:
                header.name = header.name.removeprefix(f"{prefix}/")
        most = LONGEST_EXTENSION_HEADER
        if header.type == tarfile.XGLTYPE:
            most = LONGEST_GLOBAL_HEADER
        # tarfile would hold such a member in memory, whatever its size.
        if header.type in EXTENSION_HEADERS and header.size > most:
            raise tarfile.ReadError(f"{header.size:,} bytes of attributes for one file")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        source = cast("_Tar", archive)
        source.depth += 1
        try:
            if source.depth > MOST_EXTENSION_HEADERS:
                raise tarfile.ReadError("too many headers with attributes for one file")
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # zeros, as every tar ends
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]  # the file's end
            if source.depth > 1 or not source.offset:
                raise tarfile.ReadError("it ends within a header") from error
            source.lacks_end = True
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        except Exception as error:  # of nonsense tarfile raises more than it documents
            if isinstance(error, (ExportError, OSError, MemoryError, *DAMAGE)):
                raise
            raise tarfile.ReadError("a header cannot be read") from error
        finally:
            source.depth -= 1

    def _proc_pax(self, source: "_Tar") -> Self:
        _check_attributes(cast("_Ahead", source.fileobj).peek(self.size)[: self.size])
        return super()._proc_pax(source)  # type: ignore[misc,no-any-return]

    # A map of many pieces takes tarfile gigabytes of memory, so it is looked at before.
    # https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html

    def _proc_sparse(self, source: "_Tar") -> Self:
        most = MOST_PIECES // 21 * BLOCK  # an old GNU map has 21 pieces in a block
        blocks = cast("_Ahead", source.fileobj).peek(most)[:most]
        if len(blocks) == most and all(blocks[504::BLOCK]):
            raise ArchiveError(SPARSE, name=self.name)
        return super()._proc_sparse(source)  # type: ignore[misc,no-any-return]

    def _proc_gnusparse_10(
        self, file: tarfile.TarInfo, headers: dict[str, str], source: "_Tar"
    ) -> None:
        pieces = cast("_Ahead", source.fileobj).peek(BLOCK).partition(b"\n")[0]
        if int(pieces) > MOST_PIECES:
            raise ArchiveError(SPARSE, name=file.name)
        super()._proc_gnusparse_10(file, headers, source)  # type: ignore[misc]


def _check_attributes(data: bytes) -> None:
    """Make sure that tarfile reads the records of a pax header in linear time.

    Python before 3.11.10 searches them with patterns that are quadratic in a run of digits and in
    records without an equals sign (CVE-2024-6232).

    Raises:
        tarfile.ReadError: if a record does not end where it says, or a number is endless.
    """
    if b"0" * LONGEST_NUMBER in data.translate(DIGITS_TO_ZEROS):
        raise tarfile.ReadError(f"attributes with more than {LONGEST_NUMBER} digits in a row")
    start = 0
    while data[start : start + 1].isdigit():
        digits, _, _ = data[start : start + LONGEST_NUMBER].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[start : start + length]
        if len(record) < length or b"=" not in record or not record.endswith(b"\n"):
            raise tarfile.ReadError("attributes that do not end where they say")
        start += length


class _Tar(tarfile.TarFile):
    """A tar.

    Attributes:
        depth: of the headers that are being read, each of which speaks of the next.
        lacks_end: whether the file ends without a block of zeros.
    """

    depth = 0
    lacks_end = False


def _dos_date_time(seconds: float) -> DosDateTime:
    """Seconds since 1970, UTC, in the range of a ZIP's time stamp (APPNOTE 4.4.6)."""
    moment = time.gmtime(max(0, min(seconds, 2**32)))
    if moment.tm_year < 1980:
        return (1980, 1, 1, 0, 0, 0)
    return (moment.tm_year, *moment[1:6])
