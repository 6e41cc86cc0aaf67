"""A ZIP's central directory, read from the archive's end as every program's writer leaves it.

The standard library's reader refuses much that is honest, and trusts some that is not. Section
numbers are those of PKWARE's APPNOTE, as in ``zip_records``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice, pairwise
from zipfile import ZipInfo

from splitter.archives.members import (
    DIRECTORY_TOO_LARGE,
    ArchiveError,
    Limits,
    check_count,
)
from splitter.archives.zip_records import (
    CENTRAL,
    CENTRAL_DIRECTORY_HEADER,
    DIGITAL_SIGNATURE,
    LOCAL,
    LOCAL_FILE_HEADER,
    MAX_16,
    MOST_ENDS,
    End,
    encoded_name,
    parse_ends,
    parse_entry,
)
from splitter.sentences import Actor, Said, Sentence, Words
from splitter.wording import count

Read = Callable[[int, int], bytes]
"""Gives bytes of the archive, to any thread: ``read(offset, length)``."""

TAIL = 128 * 1024
"""Bytes read from the end at once; the end records and the longest comment take 65,633, so there is
room for bytes that a transfer or a pipe adds."""

LONGEST_PADDING = 2 * 1024 * 1024
"""Bytes read from the end where all of those are zeros, which pad a file to its device's blocks."""

WRAP = 2**32

PROVED = 16
"""Places at which an unusual directory is compared with the archive's own bytes."""

MOST_SEARCHED = 512
"""Places at which headers are looked for behind files above 4 GiB: enough for some twenty."""

BYTES_BEHIND = Sentence(
    "archive.bytes-behind-zip",
    "The archive is followed by {bytes}; a transfer may have added that.",
    Actor.NOBODY,
)
WRAPPED = Sentence(
    "archive.zip-larger-than-its-format",
    "The archive is larger than its format allows, as macOS makes it; it was read all the same.",
    Actor.NOBODY,
)


class Symptom(Enum):
    """The ways in which the central directory of a ZIP cannot be read."""

    NO_END = auto()
    """The archive's last bytes have no end record."""

    ENDS_EARLY = auto()
    """The end record's comment is longer than the archive."""

    NOT_FOUND = auto()
    """No directory begins where the end records say."""

    UNREADABLE = auto()
    """There is something else between its entries."""

    CUT_OFF = auto()
    """Its last entry is longer than the directory."""

    MISCOUNTED = auto()
    """The end records count other entries than there are."""

    BEFORE_START = auto()
    """Files should begin before the archive's first byte."""

    MISPLACED = auto()
    """Files do not begin where the directory says."""

    TWO_ARCHIVES = auto()
    """There is a whole ZIP in front of this one."""


class DirectoryError(Exception):
    """A central directory that cannot be read, with its facts.

    Attributes:
        read, size: the archive.
        end: the end record that was read, if there is one.
        several: whether the archive states that it has more volumes than one.
        listed: entries that were read.
    """

    def __init__(
        self,
        symptom: Symptom,
        read: Read,
        size: int,
        end: End | None = None,
        several: bool = False,
        listed: int = 0,
    ) -> None:
        super().__init__(symptom.name)
        self.symptom, self.read, self.size, self.end = symptom, read, size, end
        self.several = several or bool(end and end.several)
        self.listed = listed


@dataclass
class Directory:
    """The central directory.

    Attributes:
        infos: its entries, in its order, ``header_offset`` counted from the archive's first byte.
            ``filename`` is the name as it is meant, ``orig_filename`` as ``encoded_name`` takes it.
        start: its first byte.
        remarks: on an unusual archive, for the summary.
        oversized: the offsets of files that take more room than their sizes, modulo 2^32, can say.
    """

    infos: list[ZipInfo]
    start: int
    remarks: list[Said] = field(default_factory=list)
    oversized: set[int] = field(default_factory=set)


def read_directory(read: Read, size: int, limits: Limits) -> Directory:
    """Find the directory of an archive of ``size`` bytes, and read every entry in it.

    Raises:
        DirectoryError: if it is damaged or missing, or of one volume of several.
        ArchiveError: if it is too large.
    """
    tail_start = max(0, size - TAIL)
    tail = read(tail_start, size - tail_start)
    if tail_start and not tail.strip(b"\0"):
        tail_start = max(0, size - LONGEST_PADDING)
        tail = read(tail_start, size - tail_start)
    end, start, data = _find(read, tail, tail_start, limits)
    infos: list[ZipInfo] = []
    position = 0
    while position < len(data) and not (infos and data.startswith(DIGITAL_SIGNATURE, position)):
        if not data.startswith(CENTRAL, position):
            raise DirectoryError(Symptom.UNREADABLE, read, size, end)
        entry = parse_entry(data, position)
        if entry is None:
            raise DirectoryError(Symptom.CUT_OFF, read, size, end)
        info, position = entry
        infos.append(info)
    if not end.counts(len(infos)):
        raise DirectoryError(Symptom.MISCOUNTED, read, size, end, listed=len(infos))
    check_count(len(infos), limits)
    directory = Directory(infos, start)
    if behind := size - end.stop:
        directory.remarks.append(BYTES_BEHIND(bytes=Words(count(behind, "byte"))))
    _place(directory, end, read, size)
    return directory


def ends_as_zip(read: Read, size: int) -> bool:
    """Whether an archive of ``size`` bytes that begins as something else is a ZIP behind it."""
    tail_start = max(0, size - TAIL)
    ends = islice(parse_ends(read(tail_start, size - tail_start), tail_start), MOST_ENDS)
    starts = (end.starts()[0] for end in ends if end.count)
    return any(start >= 0 and read(start, 4) == CENTRAL for start in starts)


def _find(read: Read, tail: bytes, tail_start: int, limits: Limits) -> tuple[End, int, bytes]:
    """The end records that belong to the archive, its directory's first byte, and its entries.

    The same bytes can stand in the comment, or behind the end: the last record counts that has a
    directory in front, and before all others one that ends with the file.
    """
    size = tail_start + len(tail)
    ends = list(parse_ends(tail, tail_start))
    if not ends:
        raise DirectoryError(Symptom.NO_END, read, size)
    ends = [*ends[:MOST_ENDS], *ends[MOST_ENDS:][-MOST_ENDS:]]
    ends.sort(key=lambda end: end.stop == size, reverse=True)
    whole = [end for end in ends if end.stop <= size]
    if not whole:
        raise DirectoryError(Symptom.ENDS_EARLY, read, size, ends[0])
    for end in whole:
        for start in end.starts():
            if not end.count or not 0 <= start <= end.position - end.size:
                continue
            if end.size > limits.max_in_memory:
                raise ArchiveError(DIRECTORY_TOO_LARGE, size=end.size, limit=limits.max_in_memory)
            if start >= tail_start:
                data = tail[start - tail_start :][: end.size]
            elif end is whole[0] and start == end.starts()[0]:  # as nearly always: one request
                data = read(start, end.size)
            else:
                data = read(start, 4)
            if data.startswith(CENTRAL):
                # A count that the directory has no room for is damage, not an archive too large.
                check_count(min(end.count, end.size // CENTRAL_DIRECTORY_HEADER.size), limits)
                return end, start, data if len(data) > 4 else read(start, end.size)
    for end in whole:
        if not end.count and not end.size:
            return end, end.position, b""
    raise DirectoryError(Symptom.NOT_FOUND, read, size, whole[0])


def _place(directory: Directory, end: End, read: Read, size: int) -> None:
    """Count the members' offsets from the archive's first byte.

    They can be off by the length of a program in front of the archive, or by
    multiples of 4 GiB: macOS's Archive Utility writes no Zip64 and lets numbers overflow. And the
    volume that they state can be nonsense. Where anything is unusual, the members' own headers
    must be there.

    Raises:
        DirectoryError: if they are not.
    """
    infos = directory.infos
    shift = directory.start - end.offset
    wrapped = not end.zip64 and shift > 0 and shift % WRAP == 0 and directory.start >= WRAP
    several = end.several or any(info.volume not in (0, MAX_16) for info in infos)
    if wrapped:
        _unwrap(directory, read, size)
        directory.remarks.append(WRAPPED())
    elif shift and infos and not several:
        here = _is_at(infos[0], read, size)
        if shift < 0 and not here and read(0, 4) != LOCAL:
            raise DirectoryError(Symptom.BEFORE_START, read, size, end)
        there = _is_at(infos[0], read, size, shift)
        if there and shift > 0 and read(0, 4) == LOCAL:
            raise DirectoryError(Symptom.TWO_ARCHIVES, read, size, end)
        if there or not here:
            for info in infos:
                info.header_offset += shift
    if (several or wrapped) and not _proved(infos, read, size):
        raise DirectoryError(Symptom.MISPLACED, read, size, end, several)


def _unwrap(directory: Directory, read: Read, size: int) -> None:
    """Add the multiples of 4 GiB that are missing from offsets modulo 2^32.

    Offsets ascend, so one that is smaller than the one before is beyond the next multiple. Only a
    file above 4 GiB can pass one unseen: then the end of the last file, which is known, is beyond
    the sum of the offsets, and the place is found by halves, at the local headers.

    Raises:
        DirectoryError: if the offsets do not lead to the directory's first byte.
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
        raise DirectoryError(Symptom.MISPLACED, read, size)

    unseen = end - end % WRAP - bases[-1]
    if unseen < 0 or not infos:
        raise DirectoryError(Symptom.MISPLACED, read, size)
    place(0, len(infos), 0, unseen)


def _proved(infos: list[ZipInfo], read: Read, size: int) -> bool:
    """Whether the first, the last, the local headers at each jump and some others are there."""
    total = len(infos)
    chosen = {0, total - 1, *(total * number // PROVED for number in range(PROVED))}
    for number in range(1, total):
        if infos[number].header_offset // WRAP != infos[number - 1].header_offset // WRAP:
            chosen |= {number - 1, number}
        if len(chosen) > 8 * PROVED:
            break
    return all(_is_at(infos[number], read, size) for number in sorted(chosen & set(range(total))))


def _is_at(info: ZipInfo, read: Read, size: int, shift: int = 0) -> bool:
    """Whether a member's local header is where its entry says, or ``shift`` bytes behind."""
    name = encoded_name(info)
    start, length = info.header_offset + shift, LOCAL_FILE_HEADER.size + len(name)
    if not 0 <= start <= size - length:
        return False
    header = read(start, length)
    return header.startswith(LOCAL) and header.endswith(name)
