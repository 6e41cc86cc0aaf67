"""A ZIP's central directory, read from the archive's end as every program's writer leaves it.

The standard library's reader refuses much that is honest, and trusts some that is not. Section
numbers are those of PKWARE's APPNOTE, as in ``zip_records``.
"""

import struct
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from zipfile import ZipInfo
from zlib import crc32

from splitter.archives.members import ArchiveError, Limits, check_count, check_in_memory, plain
from splitter.archives.zip_records import (
    CENTRAL_DIRECTORY_HEADER,
    END_OF_CENTRAL_DIRECTORY,
    LOCAL_FILE_HEADER,
    MAX_16,
    MAX_32,
    UTF8_NAME,
    ZIP64_END_OF_CENTRAL_DIRECTORY,
    ZIP64_END_OF_CENTRAL_DIRECTORY_LOCATOR,
    ZIP64_EXTRA_ID,
    encoded_name,
)
from splitter.sentences import Sentence
from splitter.wording import count

Read = Callable[[int, int], bytes]
"""Gives so many bytes of the archive: ``read(start, length)``."""

TAIL = 128 * 1024
"""Bytes read from the end at once; the end records and the longest comment take 65,633, so there is
room for what a transfer or a pipe adds."""

LONGEST_PADDING = 2 * 1024 * 1024
"""Bytes read from the end where all of those are zeros: what pads a file to its device's blocks."""

LOCAL = b"PK\3\4"
END = b"PK\5\6"
MASKED = 0x2000  # 4.4.4, bit 13
UNICODE_PATH_EXTRA_ID = 0x7075  # 4.6.9
WRAP = 2**32

# What Windows writes names in where it does not say so: the DOS and ANSI pages of western Europe.
CODE_PAGES = ("cp437", "cp850", "cp1252")

LONGEST_COMPARED_NAME = 1024
"""Characters; to compose a longer name can take minutes, and no file may have one."""

PROVED = 16
"""Places at which an unusual directory is compared with the archive's own bytes."""

MOST_SEARCHED = 512
"""Places at which headers are looked for behind files above 4 GiB: enough for some twenty."""


MOST_ENDS = 16
"""End records that are looked at, from the back and from the front of the archive's tail."""

MISPLACED = (
    "The archive is damaged: its files are not where its table of contents says; export it again."
)
ENCRYPTED_DIRECTORY = Sentence(
    "archive.zip-encrypted-directory",
    "The archive's table of contents is encrypted; zip the export again without a password.",
)
SPLIT = (
    "The archive is one volume of several: the other parts (.z01, .zip.001 and so on) are missing; "
    "zip the export again as a single file."
)


@dataclass
class Directory:
    """The central directory.

    Attributes:
        infos: its entries, in its order, ``header_offset`` counted from the archive's first byte.
            ``filename`` is the name as it is meant, ``orig_filename`` as ``encoded_name`` takes it.
        start: its first byte.
        remarks: what is unusual about the archive, for whoever asked.
        oversized: where files begin that take more room than their sizes, modulo 2^32, can say.
    """

    infos: list[ZipInfo]
    start: int
    remarks: list[str] = field(default_factory=list)
    oversized: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _End:
    """What the records at the end say.

    Attributes:
        position: of the first of them.
        stop: behind the last, its comment included.
        several: whether they speak of more volumes than one.
    """

    position: int
    stop: int
    count: int
    size: int
    offset: int
    zip64: bool
    several: bool

    def starts(self) -> tuple[int, int]:
        """Where the directory may begin: right before the end records, or where they say."""
        return self.position - self.size, self.offset

    def counts(self, count: int) -> bool:
        """Whether ``count`` entries are right. Some programs count modulo 65,536."""
        return count == self.count if self.zip64 else (count - self.count) % (MAX_16 + 1) == 0


def read_directory(read: Read, size: int, limits: Limits) -> Directory:
    """Find the directory of an archive of ``size`` bytes, and every entry in it.

    Raises:
        ArchiveError: if it is damaged or missing, is of one volume of several, or too large.
    """
    tail_start = max(0, size - TAIL)
    tail = read(tail_start, size - tail_start)
    if tail_start and not tail.strip(b"\0"):
        tail_start = max(0, size - LONGEST_PADDING)
        tail = read(tail_start, size - tail_start)
    end, start, entries = _find_end(read, tail, tail_start, limits)
    infos = list(_entries(entries))
    if not end.counts(len(infos)):
        raise ArchiveError(
            f"The archive is damaged: its table of contents lists {len(infos):,} files but counts "
            f"{end.count:,}; export it again."
        )
    check_count(len(infos), limits)
    directory = Directory(infos, start)
    behind = size - end.stop
    if behind:
        follow = count(behind, "byte follows", "bytes follow")
        directory.remarks.append(f"{follow} the archive's end; a transfer may have added that.")
    _place(directory, end, read, size)
    return directory


def ends_as_zip(read: Read, size: int) -> bool:
    """Whether an archive of ``size`` bytes that begins as something else is a ZIP behind it."""
    tail_start = max(0, size - TAIL)
    ends = islice(_ends(read(tail_start, size - tail_start), tail_start), MOST_ENDS)
    starts = (end.starts()[0] for end in ends if end.count)
    return any(start >= 0 and read(start, 4) == b"PK\1\2" for start in starts)


def _find_end(read: Read, tail: bytes, tail_start: int, limits: Limits) -> tuple[_End, int, bytes]:
    """The end records that belong to the archive, where its directory begins, and its entries.

    The same bytes can stand in the comment, or behind the end: the last record counts that has a
    directory in front, one that ends with the file before all others.
    """
    size = tail_start + len(tail)
    ends = list(_ends(tail, tail_start))
    ends = [*ends[:MOST_ENDS], *ends[MOST_ENDS:][-MOST_ENDS:]]
    if not ends:
        raise ArchiveError(
            "The archive is damaged or incomplete (its table of contents, at its very end, is "
            "missing): it was cut off, or is the first part of one that was split (.zip.001, "
            ".z01); send the whole archive."
        )
    ends.sort(key=lambda end: end.stop == size, reverse=True)
    whole = [end for end in ends if end.stop <= size]
    for end in whole:
        for start in end.starts():
            if end.count and 0 <= start <= end.position - end.size:
                check_in_memory("table of contents", end.size, limits)
                if start >= tail_start:
                    entries = tail[start - tail_start :][: end.size]
                elif end is whole[0] and start == end.starts()[0]:  # as nearly always: one request
                    entries = read(start, end.size)
                else:
                    entries = read(start, 4)
                if not entries.startswith(b"PK\1\2"):
                    continue
                check_count(end.count, limits)
                return end, start, entries if len(entries) > 4 else read(start, end.size)
    for end in whole:
        if not end.count and not end.size:
            return end, end.position, b""
    if not whole:
        raise ArchiveError(
            "The archive is damaged or incomplete (its last bytes are missing); export it again."
        )
    end = whole[0]
    if _hides_names(read):
        raise ArchiveError(ENCRYPTED_DIRECTORY)
    if end.several:
        raise ArchiveError(SPLIT)
    check_count(end.count, limits)
    check_in_memory("table of contents", end.size, limits)
    if end.size > end.position and read(0, 4) != LOCAL:
        raise _front_missing()
    raise ArchiveError(
        "The archive is damaged or incomplete (its table of contents is not where it should be); "
        "export it again."
    )


def _hides_names(read: Read) -> bool:
    """Whether the first local header's values are masked, as an encrypted directory has it."""
    header = read(0, LOCAL_FILE_HEADER.size)
    return (
        header.startswith(LOCAL)
        and len(header) == LOCAL_FILE_HEADER.size
        and bool(LOCAL_FILE_HEADER.unpack(header)[2] & MASKED)
    )


def _ends(tail: bytes, tail_start: int) -> Iterator[_End]:
    """The end records that stand in the tail, the last one first."""
    position = len(tail)
    while True:
        position = tail.rfind(END, 0, position + 3)
        if position < 0:
            return
        if position + END_OF_CENTRAL_DIRECTORY.size > len(tail):
            continue
        _, disk, first_disk, _, count, size, offset, comment = END_OF_CENTRAL_DIRECTORY.unpack_from(
            tail, position
        )
        stop = tail_start + position + END_OF_CENTRAL_DIRECTORY.size + comment
        several = disk not in (0, MAX_16) or first_disk not in (0, MAX_16)
        wide = _zip64_end(tail, position)
        if wide is not None:
            record, fields = wide
            _, _, _, _, disk, first_disk, _, count, size, offset = fields
            several = bool(disk or first_disk)
            yield _End(tail_start + record, stop, count, size, offset, True, several)
            continue
        yield _End(tail_start + position, stop, count, size, offset, False, several)


def _zip64_end(tail: bytes, position: int) -> tuple[int, tuple[int, ...]] | None:
    """The Zip64 record that belongs to the end record at ``position``, and where it stands.

    Between it and its locator there can be further data (4.3.14.3).
    """
    locator = position - ZIP64_END_OF_CENTRAL_DIRECTORY_LOCATOR.size
    if locator < 0 or not tail.startswith(b"PK\6\7", locator):
        return None
    record = locator
    for _ in range(MOST_ENDS):
        record = tail.rfind(b"PK\6\6", 0, max(0, record + 3))
        if record < 0:
            break
        if record + ZIP64_END_OF_CENTRAL_DIRECTORY.size <= locator:
            fields = ZIP64_END_OF_CENTRAL_DIRECTORY.unpack_from(tail, record)
            if record + 12 + fields[1] == locator:
                return record, fields
    return None


def _entries(data: bytes) -> Iterator[ZipInfo]:
    position = 0
    while position < len(data):
        if not data.startswith(b"PK\1\2", position):
            # 4.3.13: a signature may follow the entries.
            if data.startswith(b"PK\5\5", position) and position:
                return
            raise ArchiveError(
                "The archive is damaged (its table of contents cannot be read); export it again."
            )
        if position + CENTRAL_DIRECTORY_HEADER.size > len(data):
            raise _cut_off()
        header = CENTRAL_DIRECTORY_HEADER.unpack_from(data, position)
        lengths = header[10:13]
        start = position + CENTRAL_DIRECTORY_HEADER.size
        position = start + sum(lengths)
        if position > len(data):
            raise _cut_off()
        yield _entry(header, data[start:position], *lengths[:2])


def _cut_off() -> ArchiveError:
    return ArchiveError(
        "The archive is damaged or incomplete (its table of contents is cut off); export it again."
    )


def _front_missing() -> ArchiveError:
    return ArchiveError(
        "The archive's beginning is missing: it is the last part of one that was split (.zip.002 "
        "and so on), or was cut off at its front; send the whole archive."
    )


def _entry(header: tuple[int, ...], rest: bytes, name_length: int, extra_length: int) -> ZipInfo:
    """One entry as a ``ZipInfo``, whose offset is as it was written."""
    name = rest[:name_length]
    extra = rest[name_length : name_length + extra_length]
    info = ZipInfo()
    info.create_version, info.create_system = header[1] & 0xFF, header[1] >> 8
    info.extract_version = header[2] & 0xFF
    info.flag_bits, info.compress_type = header[3], header[4]
    info.date_time = date_time(header[6], header[5])
    info.CRC, info.compress_size, info.file_size = header[7:10]
    info.volume, info.internal_attr, info.external_attr, info.header_offset = header[13:17]
    info.extra = extra
    info.comment = rest[name_length + extra_length :]
    # What is no text in its encoding stays what it was: encoded_name gives the same bytes again.
    encoding = "utf-8" if info.flag_bits & UTF8_NAME else "cp437"
    info.orig_filename = name.decode(encoding, "surrogateescape")
    info.filename = meant_name(name, info.flag_bits, extra)
    _widen(info)
    return info


def date_time(date: int, time: int) -> tuple[int, int, int, int, int, int]:
    """4.4.6; days, hours and the rest are left as they are, however odd."""
    return (
        (date >> 9) + 1980,
        date >> 5 & 0xF,
        date & 0x1F,
        time >> 11,
        time >> 5 & 0x3F,
        (time & 0x1F) * 2,
    )


def meant_name(name: bytes, flags: int, extra: bytes) -> str:
    """A member's name as its writer meant it.

    Bit 11 says UTF-8. Without it, the Unicode Path field counts (4.6.9), and else what is UTF-8 by
    itself, as macOS and Linux write; only the rest is in a code page of DOS.
    """
    if flags & UTF8_NAME:
        return name.decode("utf-8", "surrogateescape")
    for identifier, value in extra_fields(extra):
        if identifier == UNICODE_PATH_EXTRA_ID and len(value) >= 5:
            version, crc = struct.unpack_from("<BL", value)
            if version == 1 and crc == crc32(name):
                return value[5:].decode("utf-8", "surrogateescape")
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("cp437")


def same_name(info: ZipInfo, name: bytes, flags: int, extra: bytes) -> bool:
    """Whether a local header's name means the one of the directory."""
    if name == encoded_name(info):
        return True
    names = {meant_name(name, flags, extra)}
    for page in CODE_PAGES:
        names.add(name.decode(page, "replace"))
    meant = _comparable(info.filename)
    return any(
        _comparable(other) == meant for other in names if len(other) <= LONGEST_COMPARED_NAME
    )


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", plain(name))


def extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of an extra field (4.5.1), as far as they are whole."""
    position = 0
    while position + 4 <= len(extra):
        identifier, length = struct.unpack_from("<2H", extra, position)
        if position + 4 + length > len(extra):
            return
        yield identifier, extra[position + 4 : position + 4 + length]
        position += 4 + length


def _widen(info: ZipInfo) -> None:
    """Put in what the Zip64 field holds (4.5.3): in this order, where the header has no room."""
    for identifier, value in extra_fields(info.extra):
        if identifier != ZIP64_EXTRA_ID:
            continue
        for name in ("file_size", "compress_size", "header_offset"):
            if getattr(info, name) == MAX_32 and len(value) >= 8:
                setattr(info, name, int.from_bytes(value[:8], "little"))
                value = value[8:]
            elif len(value) >= 24 and getattr(info, name) == int.from_bytes(value[:8], "little"):
                value = value[8:]  # some write every value, whether it is needed or not
        if info.volume == MAX_16 and len(value) >= 4:
            info.volume = int.from_bytes(value[:4], "little")
        return


def _place(directory: Directory, end: _End, read: Read, size: int) -> None:
    """Count the members' offsets from the archive's first byte.

    They can be off by what stands in front of the archive (a program that unpacks it), or by
    multiples of 4 GiB: macOS's Archive Utility writes no Zip64 and lets numbers overflow. And the
    volume that they state can be nonsense. Where anything is unusual, the members' own headers
    must be there.

    Raises:
        ArchiveError: if they are not.
    """
    infos = directory.infos
    shift = directory.start - end.offset
    wrapped = not end.zip64 and shift > 0 and shift % WRAP == 0 and directory.start >= WRAP
    several = end.several or any(info.volume not in (0, MAX_16) for info in infos)
    if wrapped:
        _unwrap(directory, read, size)
        directory.remarks.append(
            "The archive is larger than its format allows, as macOS makes it; it was read all the "
            "same."
        )
    elif shift and infos and not several:
        here = _is_at(infos[0], read, size)
        if shift < 0 and not here and read(0, 4) != LOCAL:
            raise _front_missing()
        there = _is_at(infos[0], read, size, shift)
        if there and shift > 0 and read(0, 4) == LOCAL:
            raise ArchiveError(
                "The archive is two ZIPs, one behind the other, of which most programs read "
                "only the last; unpack both and make one ordinary ZIP of what they hold."
            )
        if there or not here:
            for info in infos:
                info.header_offset += shift
    if several:
        _prove(infos, read, size, SPLIT)
    elif wrapped:
        _prove(infos, read, size, MISPLACED)


def _unwrap(directory: Directory, read: Read, size: int) -> None:
    """Add the multiples of 4 GiB that are missing from offsets modulo 2^32.

    Offsets ascend, so one that is smaller than the one before is beyond the next multiple. Only a
    file above 4 GiB can pass one unseen: then the end of the last file, which is known, lies beyond
    what the offsets come to, and the place is found by halves, at the local headers.

    Raises:
        ArchiveError: if the offsets do not lead to where the directory begins.
    """
    infos, end = directory.infos, directory.start
    bases = [0]  # of each member as far as offsets show it, and of the directory
    for one, other in pairwise([*(info.header_offset for info in infos), end % WRAP]):
        bases.append(bases[-1] + (WRAP if other < one else 0))
    left = MOST_SEARCHED

    def place(first: int, last: int, more: int, unseen: int) -> None:
        """Place the members behind ``first``, up to ``last``, whose places are known.

        ``more`` belongs to the base of ``first``; ``unseen`` more than that to the one of ``last``.
        """
        nonlocal left
        if not unseen:
            for info, base in zip(infos[first + 1 : last], bases[first + 1 : last], strict=True):
                info.header_offset += base + more
            return
        if last - first == 1:
            directory.oversized.add(infos[first].header_offset)
            return
        middle = (first + last) // 2
        info, offset = infos[middle], infos[middle].header_offset
        for found in range(0, unseen + WRAP, WRAP):
            info.header_offset = offset + bases[middle] + more + found
            left -= 1
            if left < 0:
                break
            if _is_at(info, read, size):
                place(first, middle, more, found)
                place(middle, last, more + found, unseen - found)
                return
        raise ArchiveError(MISPLACED)

    unseen = end - end % WRAP - bases[-1]
    if unseen < 0 or not infos:
        raise ArchiveError(MISPLACED)
    place(0, len(infos), 0, unseen)


def _prove(infos: list[ZipInfo], read: Read, size: int, complaint: str) -> None:
    """Look at local headers: the first, the last, both sides of each jump, and some between."""
    total = len(infos)
    chosen = {0, total - 1, *(total * number // PROVED for number in range(PROVED))}
    for number in range(1, total):
        if infos[number].header_offset // WRAP != infos[number - 1].header_offset // WRAP:
            chosen |= {number - 1, number}
        if len(chosen) > 8 * PROVED:
            break
    for number in sorted(chosen & set(range(total))):
        if not _is_at(infos[number], read, size):
            raise ArchiveError(complaint)


def _is_at(info: ZipInfo, read: Read, size: int, shift: int = 0) -> bool:
    """Whether a member's local header stands where its entry says, or ``shift`` bytes behind."""
    name = encoded_name(info)
    start, length = info.header_offset + shift, LOCAL_FILE_HEADER.size + len(name)
    if not 0 <= start <= size - length:
        return False
    header = read(start, length)
    return header.startswith(LOCAL) and header.endswith(name)
