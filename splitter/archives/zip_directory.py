"""Reads a ZIP's central directory from the archive's end, as many programs write it.

``zipfile`` refuses many valid archives and accepts some hostile ones. Section numbers refer to
PKWARE's APPNOTE; see ``zip_records``.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from zipfile import BadZipFile, ZipInfo

from splitter.archives.members import (
    BYTES_BEHIND,
    ONE_VOLUME,
    TWO_ARCHIVES,
    ArchiveError,
    Limits,
    check_count,
    check_in_memory,
)
from splitter.archives.zip_records import (
    CENTRAL,
    DIGITAL_SIGNATURE,
    LOCAL,
    LOCAL_FILE_HEADER,
    MASKED,
    MAX_16,
    MOST_ENDS,
    End,
    encoded_name,
    parse_ends,
    parse_entry,
    parse_local_header,
)
from splitter.sentences import Problem, Sentence, Words

Read = Callable[[int, int], bytes]
"""Returns bytes of the archive: ``read(offset, length)``. Called from any thread."""

TAIL = 128 * 1024
"""Bytes read from the end in one request. The end records and the longest comment take 65,633; the
rest allows for bytes that a transfer added."""

LONGEST_PADDING = 2 * 1024 * 1024
"""Bytes read from the end if the last ``TAIL`` bytes are zeros, which pad a file to whole blocks.
"""

WRAP = 2**32

PROVED = 16
"""Local headers that are read to verify an unusual directory."""

NO_END = Sentence(
    "archive.zip-cut-off",
    "The archive is damaged or incomplete (its table of contents, at its very end, is missing): it "
    "was cut off, or is the first part of one that was split (.zip.001, .z01); send the whole "
    "archive.",
)
ENCRYPTED_DIRECTORY = Sentence(
    "archive.zip-encrypted-directory",
    "The archive's table of contents is encrypted; zip the export again without a password.",
)
FRONT_MISSING = Sentence(
    "archive.zip-front-missing",
    "The archive's beginning is missing: it is the last part of one that was split (.zip.002 "
    "and so on), or was cut off at its front; send the whole archive.",
)
HUGE_FILE = Sentence(
    "archive.zip-with-huge-file",
    "The archive is damaged, or holds a file above 4 GiB, whose size macOS does not note; zip the "
    "export again by another program.",
)


def read_directory(
    read: Read, size: int, limits: Limits
) -> tuple[list[ZipInfo], int, list[Problem]]:
    """Find the central directory and read its entries.

    Args:
        read: returns the last ``TAIL`` bytes without a request.

    Returns:
        The entries, from ``parse_entry``, with offsets that count from the archive's first byte;
        the offset of the first entry; warnings.

    Raises:
        BadZipFile: if it is damaged.
        ArchiveError: if it is missing, encrypted, of one volume of several, or exceeds ``limits``.
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
            raise BadZipFile("its table of contents cannot be read")
        entry = parse_entry(data, position)
        if entry is None:
            raise BadZipFile("its table of contents is cut off")
        info, position = entry
        infos.append(info)
        check_count(len(infos), limits)
    if not end.counts(len(infos)):
        raise BadZipFile(
            f"its table of contents lists {len(infos):,} files but counts {end.count:,}"
        )
    _place(infos, start, end, read, size)
    behind = size - end.stop
    return infos, start, [BYTES_BEHIND(size=behind)] if behind else []


def ends_as_zip(read: Read, size: int) -> bool:
    """Whether a file with an unknown start ends as a ZIP."""
    tail_start = max(0, size - TAIL)
    ends = islice(parse_ends(read(tail_start, size - tail_start), tail_start), MOST_ENDS)
    return any(True for _ in _directories(read, ends))


def _find(read: Read, tail: bytes, tail_start: int, limits: Limits) -> tuple[End, int, bytes]:
    """The archive's end records, the directory's offset and the directory's bytes.

    A comment and bytes after the end may look like an end record. A record that ends with the file
    takes precedence, then the last record that has a directory in front.
    """
    size = tail_start + len(tail)
    ends = list(parse_ends(tail, tail_start))
    if not ends:
        raise ArchiveError(NO_END)
    ends = [*ends[:MOST_ENDS], *ends[MOST_ENDS:][-MOST_ENDS:]]
    ends = [end for end in ends if end.stop <= size]
    if not ends:
        raise BadZipFile("its last bytes are missing")
    ends.sort(key=lambda end: end.stop == size, reverse=True)
    for end, start in _directories(read, ends):
        check_in_memory(Words("table of contents"), end.size, limits)
        return end, start, read(start, end.size)
    for end in ends:
        if not end.count and not end.size:
            return end, end.position, b""
    first = parse_local_header(read(0, min(LOCAL_FILE_HEADER.size, size)))
    if first and first[0].flag_bits & MASKED:
        raise ArchiveError(ENCRYPTED_DIRECTORY)
    if ends[0].several:
        raise ArchiveError(ONE_VOLUME)
    if ends[0].size > ends[0].position and read(0, min(4, size)) != LOCAL:
        raise ArchiveError(FRONT_MISSING)
    raise BadZipFile("its table of contents is not where it should be")


def _directories(read: Read, ends: Iterable[End]) -> Iterator[tuple[End, int]]:
    """The end records that have a directory with entries, and its offset."""
    for end in ends:
        for start in end.starts():
            fits = end.count and 0 <= start <= end.position - end.size
            if fits and read(start, len(CENTRAL)) == CENTRAL:
                yield end, start


def _place(infos: list[ZipInfo], start: int, end: End, read: Read, size: int) -> None:
    """Correct the members' offsets, so that they count from the archive's first byte.

    Offsets may be wrong by the length of a program in front of the archive, or by multiples of
    4 GiB: macOS's Archive Utility writes no Zip64 and lets numbers overflow. Volume numbers may be
    wrong too. If anything is unusual, the local headers must be at the corrected offsets.
    """
    shift = start - end.offset
    wrapped = not end.zip64 and shift > 0 and shift % WRAP == 0 and start >= WRAP
    several = end.several or any(info.volume not in (0, MAX_16) for info in infos)
    if wrapped:
        _unwrap(infos, start)
    if wrapped or several:
        some = [*infos[:: len(infos) // PROVED + 1], *infos[-1:]]
        if not all(_is_at(info, read, size) for info in some):
            if several:
                raise ArchiveError(ONE_VOLUME)
            raise BadZipFile("its files are not where its table of contents says")
    elif shift and infos:
        here = _is_at(infos[0], read, size)
        if shift < 0 and not here and read(0, 4) != LOCAL:
            raise ArchiveError(FRONT_MISSING)
        there = _is_at(infos[0], read, size, shift)
        if there and shift > 0 and read(0, 4) == LOCAL:
            raise ArchiveError(TWO_ARCHIVES, kind=Words("ZIPs"), which=Words("last"))
        if there or not here:
            for info in infos:
                info.header_offset += shift


def _unwrap(infos: list[ZipInfo], directory_start: int) -> None:
    """Add the missing multiples of 4 GiB to offsets modulo 2^32.

    Offsets ascend, so an offset smaller than the one before is past another multiple. Only a file
    above 4 GiB hides a multiple; then the offsets do not lead to the directory.
    """
    base = last = 0
    for info in infos:
        offset = info.header_offset
        base += WRAP if offset < last else 0
        last = offset
        info.header_offset = base + offset
    base += WRAP if directory_start % WRAP < last else 0
    if base != directory_start - directory_start % WRAP:
        raise ArchiveError(HUGE_FILE)


def _is_at(info: ZipInfo, read: Read, size: int, shift: int = 0) -> bool:
    """Whether a member's local header is ``shift`` bytes after its stated offset."""
    name = encoded_name(info)
    start, length = info.header_offset + shift, LOCAL_FILE_HEADER.size + len(name)
    if not 0 <= start <= size - length:
        return False
    header = read(start, length)
    return header.startswith(LOCAL) and header.endswith(name)
