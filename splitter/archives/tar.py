"""Unpacks a tar, compressed or not, into a store in one pass.

Supports the formats of ``tarfile``: POSIX.1-2017 (pax and ustar), GNU tar's extensions, Unix V7.
"""

import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from math import inf
from typing import IO, Self, cast

from isal import isal_zlib

from splitter.archives.damage import DAMAGE, reading
from splitter.archives.formats import BLOCK, Format, check_tar, is_tar
from splitter.archives.members import (
    BYTES_BEHIND,
    DEVICE,
    LINK,
    ONE_VOLUME,
    TOO_MUCH,
    TWO_ARCHIVES,
    ArchiveError,
    DosDateTime,
    Limits,
    Member,
    Names,
    most_unpacked,
    plain,
)
from splitter.archives.streams import CHUNK, Ahead, decompressed
from splitter.errors import ExportError
from splitter.sentences import Actor, Problem, Sentence, Words

LONGEST_HEADERS = 1536 * 1024
"""Bytes of one member's headers, with its long name, pax attributes and map of a sparse file. macOS
stores resource forks of 1 MiB there."""

LONGEST_GLOBAL_HEADER = 64 * 1024
"""Bytes of a header about all members. ``tarfile`` copies its content for each member."""

MULTI_VOLUME = b"M"  # GNU tar: the rest of a file that began on another volume

RECORD = 20 * BLOCK
"""Bytes that tar programs write at a time (POSIX.1-2017, pax, -b). After the end of the tar, the
rest of a record is undefined."""

PAX_RECORD = re.compile(rb"(\d{1,20}) ")
LONG_NUMBER = re.compile(rb"\d{65}")

SPARSE = Sentence(
    "archive.sparse-file",
    "The archive holds {name} incomplete, as a sparse file that cannot be read here; pack the "
    "export again by GNU tar without --sparse, or as a ZIP.",
)
NO_END = Sentence(
    "archive.tar-without-end",
    "The tar ends after a file, without the zeros that mark its end. Every file that the manifest "
    "names is there; files that no row names may be missing.",
    Actor.NOBODY,
)
DEAD_LINK = Sentence(
    "file.hard-link-without-file",
    "is a hard link to a file that is not in front of it in the archive, or is there more than "
    "once; pack the files themselves",
)


def extract_tar(
    archive: IO[bytes],
    format: Format,
    output: IO[bytes],
    progress: Callable[[int], object],
    limits: Limits,
) -> tuple[dict[str, Member], dict[str, Problem], list[Problem]]:
    """Write the content of every file to ``output``, one after another.

    A separate thread decompresses while this one reads the tar, computes checksums and writes.

    Args:
        progress: called with the number of bytes written since the last call.

    Returns:
        The files by name, unusable files with the reason, and warnings.

    Raises:
        ArchiveError: if the archive is damaged, is too large or is not exactly one tar.
    """
    warnings: list[Problem] = []
    names = Names(limits)
    max_size = most_unpacked(os.fstat(archive.fileno()).st_size, limits)
    compression = format.partition(".")[2]
    chunks = iter(partial(archive.read, CHUNK), b"")
    if compression:
        chunks = decompressed(archive, compression, warnings)
    with reading(), closing(Ahead(chunks, max_size)) as stream:
        if compression:
            check_tar(stream.peek(CHUNK), compression)
        stream.header_left = LONGEST_HEADERS
        source = tarfile.TarFile(
            fileobj=cast("IO[bytes]", stream), tarinfo=_Header, encoding="utf-8"
        )
        members = _members(source, stream, output, progress, names, max_size)
        if stream.tell() == source.offset:
            warnings.append(NO_END())
        _check_rest(stream, warnings)
    for name in names.unusable:  # because of a later member, perhaps
        members.pop(name, None)
    return members, names.unusable, warnings


def _members(
    source: tarfile.TarFile,
    stream: Ahead,
    output: IO[bytes],
    progress: Callable[[int], object],
    names: Names,
    max_size: int,
) -> dict[str, Member]:
    members: dict[str, Member] = {}
    end = linked = 0
    for info in _headers(source, stream):
        if any(key.startswith("GNU.sparse.") for key in info.pax_headers) and (
            "size" in info.pax_headers or not info.issparse()
        ):
            # tarfile confuses the two sizes and reads the map as content.
            raise ArchiveError(SPARSE, name=info.name)
        if info.size < 0:
            raise tarfile.ReadError("a file of negative size")
        # A sparse file takes no space in the archive, and tarfile skips to the next header in small
        # steps even if it is far beyond the archive's end.
        if max(end + linked + info.size, source.offset) > max_size:
            raise ArchiveError(TOO_MUCH, size=max_size)
        if info.type == MULTI_VOLUME:
            raise ArchiveError(ONE_VOLUME)
        linked_to = plain(info.linkname) if info.islnk() else ""
        target = None if linked_to in names.unusable else members.get(linked_to)
        # Folders, volume labels and listings are no files that a row can name.
        is_file = info.isreg() or info.issym() or info.islnk() or info.isdev()
        name = names.claim(info.name, not is_file, _why_not(info, target))
        if name is None:
            continue
        if target:
            # GNU tar stores a file with two names once. This is the second name.
            linked += target.size
            members[name] = target
            if end + linked > max_size:
                raise ArchiveError(TOO_MUCH, size=max_size)
            continue
        crc = 0
        with reading(name):
            for chunk in _content(info, source, stream):
                output.write(chunk)
                crc = isal_zlib.crc32(chunk, crc)
                progress(len(chunk))
        members[name] = Member(end, info.size, crc, _dos_date_time(info.mtime))
        end += info.size
    return members


def _headers(source: tarfile.TarFile, stream: Ahead) -> Iterator[tarfile.TarInfo]:
    while info := source.next():
        source.members = []  # type: ignore[attr-defined]  # tarfile would keep all headers
        stream.header_left = inf
        yield info
        stream.header_left = LONGEST_HEADERS
    stream.header_left = inf


def _content(
    info: tarfile.TarInfo, source: tarfile.TarFile, stream: Ahead
) -> Iterator[bytes | memoryview]:
    if info.issparse():
        content = cast("IO[bytes]", source.extractfile(info))
        yield from iter(partial(content.read, CHUNK), b"")
        return
    # Reading through tarfile would copy every byte six times.
    left = info.size
    while left:
        chunk = stream.take(left)
        if not chunk:
            raise tarfile.ReadError("unexpected end of data")
        left -= len(chunk)
        yield chunk


def _why_not(info: tarfile.TarInfo, target: Member | None) -> Problem | None:
    if info.issym():
        return LINK()
    if info.isdev():
        return DEVICE()
    return DEAD_LINK() if info.islnk() and target is None else None


def _check_rest(stream: Ahead, warnings: list[Problem]) -> None:
    """Read the bytes after the tar's end to verify the checksum, and refuse a second tar.

    The rest of the last record may contain old headers and content of the writer's buffer, from
    Apache Ant and old Java programs.
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
        raise ArchiveError(TWO_ARCHIVES, kind=Words("tar archives"), which=Words("first"))
    warnings.append(BYTES_BEHIND(size=extra))


class _Header(tarfile.TarInfo):
    """A member's header. Plain ``tarfile`` treats a damaged or missing header as the tar's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if not is_tar(bytes(buf)):
                raise
            header = super().frombuf(without_unused(buf), encoding, errors)
        if buf[257:265] == tarfile.GNU_MAGIC and header.type not in tarfile.GNU_TYPES:
            # GNU's format can have times where POSIX has the start of a long name:
            # https://www.gnu.org/software/tar/manual/html_node/Standard.html
            prefix = bytes(buf[345:500]).partition(b"\0")[0].decode(encoding, errors)
            if prefix:
                header.name = header.name.removeprefix(f"{prefix}/")
        if header.type == tarfile.XGLTYPE and header.size > LONGEST_GLOBAL_HEADER:
            raise tarfile.ReadError(f"{header.size:,} bytes of attributes for all files")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            raise  # at the end
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        except Exception as error:  # tarfile raises undocumented exceptions for invalid headers
            if isinstance(error, (ExportError, OSError, MemoryError, *DAMAGE)):
                raise
            raise tarfile.ReadError("a header cannot be read") from error

    def _proc_pax(self, source: tarfile.TarFile) -> Self:
        """Refuse pax records that take ``tarfile`` quadratic time.

        These are long numbers before Python 3.11.10 and 3.12.6 (CVE-2024-6232), and records without
        a ``=`` in several versions, which search for it in all later records.
        """
        records = cast("Ahead", source.fileobj).peek(self.size)
        position = 0
        while found := PAX_RECORD.match(records, position):
            length = int(found[1])
            if records.find(b"=", position, position + length) < 0:
                raise tarfile.ReadError("attributes that cannot be read")
            position += length
        if LONG_NUMBER.search(records):
            raise tarfile.ReadError("a number of more than 64 digits in a header")
        return super()._proc_pax(source)  # type: ignore[misc,no-any-return]


def without_unused(header: bytes | bytearray) -> bytes:
    """A header without mode, owner and device numbers, where old programs leave arbitrary bytes."""
    blank = bytearray(header)
    blank[100:124] = bytes(24)
    if bytes(blank[156:157]) not in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        blank[329:345] = bytes(16)
    blank[148:156] = b"%06o\0 " % tarfile.calc_chksums(blank)[0]  # type: ignore[attr-defined]
    return bytes(blank)


def _dos_date_time(seconds: float) -> DosDateTime:
    """Seconds since 1970 as UTC, limited to the range of a ZIP's time stamp (APPNOTE 4.4.6)."""
    moment = time.gmtime(max(0, min(seconds, 2**32)))
    if moment.tm_year < 1980:
        return (1980, 1, 1, 0, 0, 0)
    return (moment.tm_year, *moment[1:6])
