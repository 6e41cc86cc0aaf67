"""Compares a sample of a ZIP's members with its central directory before a splice.

S3 copies each member's local header and data descriptor unchanged. Some programs read these, others
read the directory, so both must agree, for the strictest of unzip, 7z, bsdtar, Java, Go and Python.
A faulty writer makes the same mistake in every member, so a sample reveals it. Section numbers
refer to PKWARE's APPNOTE.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from zipfile import ZIP_DEFLATED, ZIP_STORED

from splitter.archives.members import ArchiveError
from splitter.archives.zip_data import deflated_length
from splitter.archives.zip_directory import Read
from splitter.archives.zip_index import MemberSpan, ZipIndex, content, local_header
from splitter.archives.zip_records import (
    DATA_DESCRIPTOR,
    LONGEST_DATA_DESCRIPTOR,
    MAX_32,
    STRENGTH,
    LocalHeader,
    data_descriptors,
    encoded_name,
    extra_fields,
    local_zip64_sizes,
    meant_name,
)
from splitter.sentences import Actor, Problem, Sentence, Words

SAMPLE = 64
"""Members whose headers are compared. All members of a smaller archive are compared."""

UNPACKED = 4
"""Members of the sample that are also unpacked: the first, the last and two between them."""

LARGEST_UNPACKED = 8 * 1024 * 1024
"""Compressed bytes of the largest member that is unpacked; images are smaller."""

REQUESTS = SAMPLE
"""Threads: one for each member of the sample, because a request mostly waits."""

LATEST_VERSION = 46  # 4.6 (4.4.3.2); Info-ZIP's unzip skips members that need a later version

# Reasons to extract the archive instead.
IN_FRONT = Sentence(
    "member.header-differs",
    "{field} in front of the data of {name} differs from the table of contents",
    Actor.NOBODY,
)
BEHIND = Sentence(
    "member.descriptor-differs",
    "the checksum or the size after the data of {name} differs from the table of contents",
    Actor.NOBODY,
)
WIDE = Sentence(
    "member.wide-descriptor",
    "the sizes after the data of {name} have 64 bits, which Java does not read",
    Actor.NOBODY,
)
NEWER = Sentence(
    "member.newer-version",
    "{name} asks for a later version of ZIP, {version}, than unzip reads",
    Actor.NOBODY,
)
LONG_FIELD = Sentence(
    "member.extra-field-too-long",
    "the extra field in front of the data of {name} is longer than its room",
    Actor.NOBODY,
)
SLACK = Sentence(
    "member.stray-bytes", "after the data of {name} are bytes that belong to no file", Actor.NOBODY
)
SLACK_INSIDE = Sentence(
    "member.stray-bytes-inside",
    "after the compressed data of {name}, within its size, are bytes that belong to no file",
    Actor.NOBODY,
)


def disagreement(index: ZipIndex, read: Read) -> tuple[str | None, str]:
    """The first difference that rules out a splice, and a summary of the comparisons."""
    files = list(index.members.items())
    chosen = sample([span for _, span in files])
    count = len(chosen)
    unpack = {chosen[(count - 1) * number // (UNPACKED - 1)] for number in range(UNPACKED)}

    def look(number: int) -> Problem | None:
        name, span = files[number]
        if number in unpack and span.size <= LARGEST_UNPACKED:
            data = read(span.start, span.size)

            def here(offset: int, length: int) -> bytes:
                start = offset - span.start
                return data[start : start + length]

            return header_disagreement(name, span, here) or _data_disagreement(name, span, here)
        return header_disagreement(name, span, read)

    with ThreadPoolExecutor(REQUESTS) as pool:
        found = [problem for problem in pool.map(look, chosen) if problem]
    these = f"{count:,} of {len(files):,}" if count < len(files) else f"all {count:,}"
    compared = f"compared the headers of {these} files, unpacked {len(unpack):,}"
    return (found[0].text if found else None), compared


def sample(spans: Sequence[MemberSpan]) -> list[int]:
    """The numbers of the members to compare: both ends of each run, and others in between.

    A run was written by one program at one time. It ends where the version or flags change, or
    where names no longer ascend, as in merged archives.
    """
    count = len(spans)
    if count <= SAMPLE:
        return list(range(count))
    ends = [
        number
        for number, (one, other) in enumerate(pairwise(spans), 1)
        if _kind(one) != _kind(other) or one.info.filename > other.info.filename
    ]
    # In a shuffled archive nearly every file begins a run, so take only some.
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


def header_disagreement(name: str, span: MemberSpan, read: Read) -> Problem | None:
    """The first difference between a member's local header or data descriptor and the directory."""
    try:
        header = local_header(name, span, read)
    except ArchiveError as error:
        return error.problem
    info = span.info
    wide = local_zip64_sizes(header.extra)
    for differs, field in (
        (header.name != encoded_name(info), "the name"),
        # 4.6.9: several programs read the name in an extra field.
        (meant_name(header.name, header.flags, header.extra) != info.filename, "the name"),
        (header.method != info.compress_type, "the compression method"),
        ((header.flags ^ info.flag_bits) & ~STRENGTH, "a flag"),
        (not _sizes_agree(header, wide, span), "the checksum or the size"),
    ):
        if differs:
            return IN_FRONT(field=Words(field), name=name)
    if header.version > LATEST_VERSION:
        version = f"{header.version // 10}.{header.version % 10}"
        return NEWER(name=name, version=Words(version))
    if sum(4 + len(value) for _, value in extra_fields(header.extra)) != len(header.extra):
        return LONG_FIELD(name=name)
    left = span.size - header.size - info.compress_size
    if not header.flags & DATA_DESCRIPTOR:
        return SLACK(name=name) if left else None
    if left > LONGEST_DATA_DESCRIPTOR:
        return SLACK(name=name)
    # Java before version 22 uses the size; bsdtar and later versions use the Zip64 field.
    if wide:
        return WIDE(name=name)
    return None if read(span.end - left, left) in data_descriptors(info) else BEHIND(name=name)


def _sizes_agree(header: LocalHeader, wide: tuple[int, int] | None, span: MemberSpan) -> bool:
    """Whether a header's checksum and sizes are correct or left to the data descriptor."""
    info = span.info
    found = [header.crc, header.compress_size, header.file_size]
    wanted = [info.CRC, info.compress_size, info.file_size]
    if wide:  # 4.5.3: some programs read the field even if the header has the sizes
        found += [*wide]
        wanted += wanted[1:]
        found[1:3] = [wide[at] if found[1 + at] == MAX_32 else found[1 + at] for at in (0, 1)]
    left_out = (0, MAX_32) if header.flags & DATA_DESCRIPTOR else ()
    if info.compress_type == ZIP_STORED and info.compress_size != info.file_size:
        return False
    pairs = zip(found, wanted, strict=True)
    return all(value == want or value in left_out for value, want in pairs)


def _data_disagreement(name: str, span: MemberSpan, read: Read) -> Problem | None:
    try:
        for _ in content(name, span, read):
            pass
        header = local_header(name, span, read)
    except ArchiveError as error:
        return error.problem
    packed = read(span.start + header.size, span.info.compress_size)
    if span.info.compress_type == ZIP_DEFLATED and deflated_length(packed) != len(packed):
        return SLACK_INSIDE(name=name)
    return None
