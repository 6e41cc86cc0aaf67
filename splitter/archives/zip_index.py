"""Indexes a ZIP on disk or in S3: finds its members' bytes and reads single members.

Section numbers refer to PKWARE's APPNOTE; see ``zip_records``.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO
from zipfile import BadZipFile, ZipInfo

from isal.isal_zlib import crc32

from splitter.archives.damage import MEMBER_DAMAGED, reading
from splitter.archives.members import (
    CHUNK,
    DEFAULT_LIMITS,
    DEVICE,
    LINK,
    TOO_MUCH,
    ArchiveError,
    Limits,
    Names,
    check_in_memory,
    most_unpacked,
)
from splitter.archives.zip_data import UNPACKERS, method_name
from splitter.archives.zip_directory import TAIL, Read, read_directory
from splitter.archives.zip_records import (
    AES,
    ENCRYPTED,
    LOCAL_FILE_HEADER,
    MACOS,
    MASKED,
    PATCH,
    UNIX,
    encoded_name,
    parse_local_header,
    same_name,
)
from splitter.sentences import Problem, Sentence, Words

READ_AT_ONCE = 2 * 1024 * 1024
"""Bytes of a member that are read together with its header, so that an image takes one request."""

READ_IN_MEMORY = 16 * 1024 * 1024
"""The same for a member that is read into memory, such as the manifest."""

LOCKED = Sentence("file.is-encrypted", "is encrypted; zip the export again without a password")
METHOD = Sentence(
    "file.compression-unknown",
    "is compressed by a method that cannot be read here, {method} (method {number:bare}); zip the "
    "images again with ordinary compression, called Deflate",
)


@dataclass(frozen=True, slots=True)
class MemberSpan:
    """A file's bytes in the archive: local header, data and data descriptor.

    Attributes:
        info: the entry in the central directory.
        start: offset of the local header.
        end: ``start`` of the next member, or the central directory's offset.
    """

    info: ZipInfo
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class ZipIndex:
    """The files of a ZIP by name.

    Not a dataclass; see ``extract.Contents``.

    Attributes:
        members: by offset, without folders and noise of desktop systems.
        unusable: files that no batch may contain, with the reason; see ``members.Names``.
        remarks: warnings about the archive.
        unpacked: bytes of the members together.
    """

    def __init__(self, read: Read, size: int, limits: Limits = DEFAULT_LIMITS) -> None:
        """Read the central directory.

        Args:
            read: returns bytes of the archive, in any thread. Its errors are passed on.
            size: bytes of the archive.

        Raises:
            ArchiveError: if the archive is damaged or truncated, has overlapping members, is one
                volume of several, or exceeds ``limits``.
        """
        names = Names(limits)
        # The end records, often the directory and the manifest.
        self.read_at = keeping(read, max(0, size - TAIL), min(size, TAIL))
        with reading():
            infos, start, self.remarks = read_directory(self.read_at, size, limits)
        self.members: dict[str, MemberSpan] = {}
        infos.sort(key=lambda info: info.header_offset)
        ends = [*(info.header_offset for info in infos), start][1:]
        for info, end in zip(infos, ends, strict=True):
            _check_room(info, end, start)
            kind = _kind(info)
            is_folder = kind == stat.S_IFDIR or info.filename.endswith(("/", "\\"))
            name = names.claim(info.filename, is_folder, _why_unusable(info, kind))
            if name is not None:
                self.members[name] = MemberSpan(info, info.header_offset, end)
        for name in names.unusable:  # because of a later member, perhaps
            self.members.pop(name, None)
        most = most_unpacked(size, limits)
        self.unpacked = sum(span.info.file_size for span in self.members.values())
        if self.unpacked > most:
            raise ArchiveError(TOO_MUCH, size=most)
        self.unusable = names.unusable

    def read(self, name: str, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """The bytes of one member.

        Raises:
            ArchiveError: if it is damaged, or larger than ``max_in_memory``.
        """
        span = self.members[name]
        check_in_memory(name, span.info.file_size, limits)
        return b"".join(content(name, span, self.read_at, READ_IN_MEMORY))

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a member of any size, in pieces. Thread-safe.

        Raises:
            ArchiveError: at the end, if size or CRC differ.
        """
        return content(name, self.members[name], self.read_at)


def keeping(read: Read, start: int, length: int) -> Read:
    """``read`` that reads one range at once and keeps it; an answer from it ends where it ends."""
    kept = read(start, length)

    def keeps(offset: int, length: int) -> bytes:
        at = offset - start
        if not 0 <= at < len(kept):
            return read(offset, length)
        return kept[at : at + length]  # one copy: of a whole member, most of the time

    return keeps


def file_reader(file: IO[bytes]) -> Read:
    """A thread-safe ``Read`` for a local file."""

    def read(start: int, length: int) -> bytes:
        data = os.pread(file.fileno(), length, start)
        # os.pread may return fewer bytes before the file's end.
        while len(data) < length and (
            more := os.pread(file.fileno(), length - len(data), start + len(data))
        ):
            data += more
        return data

    return read


def damaged(name: str, cause: str) -> ArchiveError:
    """A member that cannot be unpacked because of ``cause``, our own words."""
    return ArchiveError(MEMBER_DAMAGED, name=name, cause=Words(cause))


def local_header(name: str, span: MemberSpan, read: Read) -> tuple[ZipInfo, int]:
    """The local header of a member, and its length.

    Raises:
        ArchiveError: if it is missing or leaves too little room for the data.
    """
    # The usual length, with few extra fields.
    guess = min(span.size, LOCAL_FILE_HEADER.size + len(encoded_name(span.info)) + 64)
    found = parse_local_header(read(span.start, guess))
    if found and guess < found[1] <= span.size:
        found = parse_local_header(read(span.start, found[1]))
    if found is None:
        raise damaged(name, "it is not where the table of contents says")
    if found[1] + span.info.compress_size > span.size:
        raise damaged(name, "it overlaps the file after it")
    return found


def content(
    name: str, span: MemberSpan, read: Read, at_once: int = READ_AT_ONCE
) -> Iterator[bytes]:
    """The bytes of a member in pieces, checked against its entry in the central directory.

    Args:
        at_once: bytes to read together with the header.

    Raises:
        ArchiveError: if the header is invalid or has another name, and at the end if size or CRC
            differ.
    """
    info = span.info
    read = keeping(read, span.start, min(span.size, at_once))
    header, length = local_header(name, span, read)
    if not same_name(info, header):
        raise damaged(name, "it has another name in the table of contents")

    def blocks() -> Iterator[bytes]:
        position = span.start + length
        end = position + info.compress_size
        while position < end:
            block = read(position, min(CHUNK, end - position))
            if not block:
                raise EOFError("the file ends early")
            position += len(block)
            yield block

    left, crc = info.file_size, 0
    with reading(name):
        for chunk in UNPACKERS[info.compress_type](blocks(), info.file_size):
            left -= len(chunk)
            if left < 0:
                break
            crc = crc32(chunk, crc)
            yield chunk
        if left:
            raise BadZipFile(f"it is {'longer' if left < 0 else 'shorter'} than the archive says")
        if crc != info.CRC:
            raise BadZipFile("its checksum is wrong")


def _check_room(info: ZipInfo, end: int, directory_start: int) -> None:
    """Refuse a member that ends behind ``end``, as only damaged archives and ZIP bombs have."""
    least_end = info.header_offset + least_size(info)
    if info.header_offset < 0 or least_end > directory_start:
        raise damaged(info.filename, "it reaches beyond the end of the archive")
    if least_end > end:
        raise damaged(info.filename, "it overlaps the file after it")


def least_size(info: ZipInfo) -> int:
    """Bytes of a member without extra field and data descriptor, whose lengths are unknown here."""
    return LOCAL_FILE_HEADER.size + len(encoded_name(info)) + info.compress_size


def _kind(info: ZipInfo) -> int:
    """The file type of Unix's mode, or 0."""
    # 4.4.15: Unix programs store the mode in the upper two bytes. Other programs may have anything
    # there, but several unpackers create a link whatever the system.
    kind = stat.S_IFMT(info.external_attr >> 16)
    return kind if info.create_system in (UNIX, MACOS) or kind == stat.S_IFLNK else 0


def _why_unusable(info: ZipInfo, kind: int) -> Problem | None:
    if kind == stat.S_IFLNK:
        return LINK()
    if kind not in (0, stat.S_IFREG):
        return DEVICE()
    if info.flag_bits & (ENCRYPTED | MASKED) or info.compress_type == AES:
        return LOCKED()
    if info.compress_type not in UNPACKERS or info.flag_bits & PATCH:
        method = Words(method_name(info.compress_type))
        return METHOD(method=method, number=info.compress_type)
    return None
