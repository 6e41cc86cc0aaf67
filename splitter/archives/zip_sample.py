"""Whether a ZIP's members are what its central directory says, looked at before they are copied.

A batch that S3 copies keeps each member's local header and data descriptor as they are. Programs
read the one or the other, so both must agree with the directory. A writer that disagrees with
itself does so in every member: a sample tells. Section numbers are those of PKWARE's APPNOTE.
"""

import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from zipfile import ZIP_DEFLATED

from splitter.archives.members import ArchiveError
from splitter.archives.zip_data import deflated_length
from splitter.archives.zip_directory import Read, extra_fields
from splitter.archives.zip_index import (
    LATEST_VERSION,
    LONGEST_DATA_DESCRIPTOR,
    STRENGTH,
    MemberSpan,
    ZipIndex,
    content,
    header_guess,
    local_header,
)
from splitter.archives.zip_records import (
    DATA_DESCRIPTOR,
    MAX_32,
    ZIP64_EXTRA_ID,
    encoded_name,
)

SAMPLE = 64
"""Members whose headers are compared; all of an archive that has no more."""

UNPACKED = 4
"""Members of the sample that are also unpacked: the first, the last and some between."""

LARGEST_UNPACKED = 8 * 1024 * 1024
"""Bytes of a member, packed, that is fetched for that; images are smaller."""

REQUESTS = 16
"""Threads, each of which asks for one member's bytes at a time."""

SIGNATURE = b"PK\7\x08"  # 4.3.9.3


def disagreement(index: ZipIndex, read: Read) -> tuple[str | None, str]:
    """What in the archive speaks against copying its members, if anything does; what was looked at.

    A request fetches a member's header and, in front of it, the data descriptor of another.

    Args:
        read: gives bytes of the archive, to any number of threads; what it raises is passed on.
    """
    files = list(index.members.items())
    chosen = sample([span for _, span in files])
    count = len(chosen)
    unpack = {chosen[(count - 1) * number // (UNPACKED - 1)] for number in range(UNPACKED)}

    def look(number: int) -> str | None:
        name, span = files[number]
        start = max(0, span.start - LONGEST_DATA_DESCRIPTOR)
        data = read(start, span.start - start + header_guess(span))

        def near(at: int, length: int) -> bytes:
            if start <= at and at + length <= start + len(data):
                return data[at - start : at - start + length]
            return read(at, length)

        before = files[number - 1] if number else None
        if before and before[1].end == span.start and (what := _descriptor(*before, near)):
            return what
        if what := _header(name, span, near):
            return what
        if number == len(files) - 1 and (what := _descriptor(name, span, read)):
            return what
        if number in unpack and span.size <= LARGEST_UNPACKED:
            return _content_disagreement(name, span, read)
        return None

    with ThreadPoolExecutor(REQUESTS) as pool:
        found = [what for what in pool.map(look, chosen) if what]
    these = f"{count:,} of {len(files):,}" if count < len(files) else f"all {count:,}"
    looked = f"compared the headers of {these} files, unpacked {len(unpack):,}"
    return (found[0] if found else None), looked


def sample(spans: Sequence[MemberSpan]) -> list[int]:
    """The numbers of the members to look at: both ends of each run, and others between.

    A run is what one program wrote in one go, as far as it can be seen: in merged archives,
    versions and names begin anew.
    """
    count = len(spans)
    if count <= SAMPLE:
        return list(range(count))
    ends = [
        number
        for number, (one, other) in enumerate(pairwise(spans), 1)
        if _kind(one) != _kind(other) or one.info.filename > other.info.filename
    ]
    # Of a shuffled archive, in which every file seems to begin a run, some must do.
    few = {ends[len(ends) * n // (SAMPLE // 4)] for n in range(SAMPLE // 4)} if ends else set()
    chosen = {0, count - 1, *few, *(number - 1 for number in few)}
    rest = SAMPLE - len(chosen)
    chosen |= {(count - 1) * (number + 1) // (rest + 1) for number in range(rest)}
    return sorted(chosen)


def _kind(span: MemberSpan) -> tuple[int, ...]:
    info = span.info
    return (
        info.create_system,
        info.create_version,
        info.extract_version,
        info.flag_bits,
        info.compress_type,
    )


def header_disagreement(name: str, span: MemberSpan, read: Read) -> str | None:
    """What a member's local header or data descriptor says otherwise than the directory."""
    return _header(name, span, read) or _descriptor(name, span, read)


def _header(name: str, span: MemberSpan, read: Read) -> str | None:
    try:
        header = local_header(name, span, read)
    except ArchiveError as error:
        return str(error)
    info = span.info
    wanted = (info.CRC, info.compress_size, info.file_size)
    found = (header.crc, *_wide_sizes(header.compress_size, header.file_size, header.extra))
    streamed = bool(header.flags & DATA_DESCRIPTOR)
    if streamed:
        # They may be left to the descriptor, all or some.
        pairs = zip(found, wanted, strict=True)
        same = all(value in (0, MAX_32, want) for value, want in pairs)
    else:
        same = found == wanted
    for differs, what in (
        (header.name != encoded_name(info), "the name"),
        (header.method != info.compress_type, "the compression method"),
        ((header.flags ^ info.flag_bits) & ~STRENGTH, "a flag"),
        (not same, "the checksum or the size"),
        (header.version > LATEST_VERSION, "the version of ZIP"),
    ):
        if differs:
            return f"{what} that stands in front of the data of '{name}' is another"
    fields = sum(4 + len(value) for _, value in extra_fields(header.extra))
    if fields != len(header.extra):
        return f"the extra field in front of the data of '{name}' is longer than its room"
    left = span.end - header.data - info.compress_size
    if left > LONGEST_DATA_DESCRIPTOR or (left and not streamed):
        return f"after '{name}' it has bytes that belong to no file"
    return None


def _descriptor(name: str, span: MemberSpan, read: Read) -> str | None:
    info = span.info
    if not info.flag_bits & DATA_DESCRIPTOR:
        return None
    last = read(span.end - LONGEST_DATA_DESCRIPTOR, LONGEST_DATA_DESCRIPTOR)
    if last.endswith(tuple(_descriptors(info.CRC, info.compress_size, info.file_size))):
        return None
    return f"the checksum or the size that stands behind the data of '{name}' is another"


def _descriptors(crc: int, packed: int, size: int) -> Iterator[bytes]:
    """Every way to write a data descriptor (4.3.9): with or without signature, narrow or wide."""
    for form in ("<3L", "<L2Q"):
        if form == "<3L" and max(packed, size) > MAX_32:
            continue
        descriptor = struct.pack(form, crc, packed, size)
        yield SIGNATURE + descriptor
        yield descriptor


def _wide_sizes(packed: int, size: int, extra: bytes) -> tuple[int, int]:
    """The sizes, from the Zip64 field where the header has no room (4.5.3)."""
    for identifier, value in extra_fields(extra):
        if identifier == ZIP64_EXTRA_ID and len(value) >= 16:
            wide_size, wide_packed = struct.unpack_from("<2Q", value)
            return (
                wide_packed if packed == MAX_32 else packed,
                wide_size if size == MAX_32 else size,
            )
    return packed, size


def _content_disagreement(name: str, span: MemberSpan, read: Read) -> str | None:
    data = read(span.start, span.size)
    start = span.start
    try:
        for _ in content(name, span, lambda at, length: data[at - start : at - start + length]):
            pass
        header = local_header(name, span, lambda at, length: data[at - start : at - start + length])
    except ArchiveError as error:
        return str(error)
    if span.info.compress_type == ZIP_DEFLATED:
        packed = data[header.data - start :][: span.info.compress_size]
        if deflated_length(packed) != len(packed):
            return f"behind the compressed data of '{name}' it has bytes that belong to no file"
    return None
