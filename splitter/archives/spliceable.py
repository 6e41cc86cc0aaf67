"""Decides whether S3 can copy a ZIP's members into batches.

S3 copies each member's local header and data descriptor unchanged. Some programs read these, others
read the directory, so both must agree, for the strictest of unzip, 7z, bsdtar, Java, Go and Python.
A faulty writer makes the same mistake in every member, so a sample reveals it. Section numbers
refer to PKWARE's APPNOTE.
"""

import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from zipfile import ZIP_DEFLATED, ZIP_STORED

from splitter.archives.members import ArchiveError
from splitter.archives.zip_data import deflated_length, method_name
from splitter.archives.zip_directory import Read
from splitter.archives.zip_index import (
    MemberSpan,
    ZipIndex,
    content,
    keeping,
    least_size,
    local_header,
)
from splitter.archives.zip_records import (
    DATA_DESCRIPTOR,
    LONGEST_DATA_DESCRIPTOR,
    LONGEST_EXTRA_FIELD,
    MAX_32,
    STRENGTH,
    UTF8_NAME,
    data_descriptors,
    encoded_name,
    extra_fields,
    local_zip64_sizes,
)
from splitter.sentences import Actor, Problem, Sentence, Words

SAMPLE = 64
"""Members whose headers are compared. All members of a smaller archive are compared."""

UNPACKED = 4
"""Members of the sample that are also unpacked: the first, the last and two between them."""

LARGEST_UNPACKED = 8 * 1024 * 1024
"""Compressed bytes of the largest member that is unpacked; images are smaller."""

LATEST_VERSION = 46  # 4.6 (4.4.3.2); Info-ZIP's unzip skips members that need a later version


def _reason(code: str, template: str) -> Sentence:
    """A reason for a lane; nobody has to act."""
    return Sentence(code, template, Actor.NOBODY)


COPYABLE = _reason(
    "lane.copyable",
    "S3 can copy every file; compared the headers of {compared} files, unpacked {unpacked}",
)
IN_A_FOLDER = _reason(
    "lane.images-in-a-folder",
    "its images are in a folder, {folder}, which a copied member would keep",
)
RENAMED = _reason("member.renamed", "{name} is called {original} inside it")
NOT_MARKED = _reason(
    "member.not-marked-as-utf-8",
    "{name} is not marked as UTF-8, so programs read it in several ways",
)
NOT_COMPOSED = _reason("member.not-nfc", "{name} is not in Unicode's composed form (NFC)")
METHOD = _reason("member.not-deflated", "{name} is compressed by {method}, not by Deflate")
FLAGS = _reason("member.refused-flags", "{name} has flags that some programs refuse")
STORED_STREAM = _reason(
    "member.stored-without-size",
    "{name} is stored without its size in front, so no stream can be read",
)
DIFFERS = _reason("member.differs", "{field} {name} differs from the table of contents")
WIDE = _reason(
    "member.wide-descriptor",
    "the sizes after the data of {name} have 64 bits, which Java does not read",
)
NEWER = _reason(
    "member.newer-version",
    "{name} asks for a later version of ZIP, {version}, than unzip reads",
)
LONG_FIELD = _reason(
    "member.extra-field-too-long",
    "the extra field in front of the data of {name} is longer than its room",
)
SLACK = _reason("member.stray-bytes", "after the data of {name} are bytes that belong to no file")


def copyable(index: ZipIndex, folder: str) -> tuple[bool, Problem]:
    """Whether S3 can copy the members into batches, and the reason.

    Args:
        folder: the images' folder; see ``manifest.Partition``.
    """
    if folder:
        return False, IN_A_FOLDER(folder=folder)
    files = list(index.members.items())
    for name, span in files:
        if problem := _obstacle(name, span):
            return False, problem
    chosen = sample([span for _, span in files])
    count = len(chosen)
    unpack = {chosen[(count - 1) * number // (UNPACKED - 1)] for number in range(UNPACKED)}

    def look(number: int) -> Problem | None:
        name, span = files[number]
        if number not in unpack or span.size > LARGEST_UNPACKED:
            return header_disagreement(name, span, index.read_at)
        read = keeping(index.read_at, span.start, span.size)
        return header_disagreement(name, span, read) or _data_disagreement(name, span, read)

    with ThreadPoolExecutor(SAMPLE) as pool:  # a request mostly waits
        problem = next(filter(None, pool.map(look, chosen)), None)
    if problem:
        return False, problem
    compared = f"{count:,} of {len(files):,}" if count < len(files) else f"all {count:,}"
    return True, COPYABLE(compared=Words(compared), unpacked=len(unpack))


def _obstacle(name: str, span: MemberSpan) -> Problem | None:
    """The reason in the central directory that a member's local header cannot be in a batch."""
    info = span.info
    if info.orig_filename != name:
        return RENAMED(name=name, original=info.orig_filename)
    if not (name.isascii() or info.flag_bits & UTF8_NAME):
        return NOT_MARKED(name=name)
    if not unicodedata.is_normalized("NFC", name):
        return NOT_COMPOSED(name=name)
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return METHOD(name=name, method=Words(method_name(info.compress_type)))
    if info.flag_bits & ~(STRENGTH | DATA_DESCRIPTOR | UTF8_NAME):
        return FLAGS(name=name)
    if info.compress_type == ZIP_STORED and info.flag_bits & DATA_DESCRIPTOR:
        return STORED_STREAM(name=name)
    if span.size > least_size(info) + LONGEST_EXTRA_FIELD + LONGEST_DATA_DESCRIPTOR:
        return SLACK(name=name)
    return None


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
    versions = (info.create_system, info.create_version, info.extract_version)
    return (*versions, info.flag_bits, info.compress_type)


def header_disagreement(name: str, span: MemberSpan, read: Read) -> Problem | None:
    """The first difference between a member's local header or data descriptor and the directory."""
    try:
        header, length = local_header(name, span, read)
    except ArchiveError as error:
        return error.problem
    info = span.info
    has_descriptor = header.flag_bits & DATA_DESCRIPTOR
    wide = local_zip64_sizes(header.extra)
    if has_descriptor and wide:
        # Java before version 22 uses the size; bsdtar and later versions use the Zip64 field.
        return WIDE(name=name)
    sizes = (info.compress_size, info.file_size)
    left_out = (0, MAX_32) if has_descriptor else ()
    elsewhere = (MAX_32,) if wide else left_out
    for differs, field in (
        (encoded_name(header) != encoded_name(info), "the name"),
        # 4.6.9: several programs read the name in an extra field.
        (header.filename != info.filename, "the name"),
        (header.compress_type != info.compress_type, "the compression method"),
        ((header.flag_bits ^ info.flag_bits) & ~STRENGTH, "a flag"),
        (header.CRC not in (info.CRC, *left_out), "the checksum"),
        (header.compress_size not in (info.compress_size, *elsewhere), "the size"),
        (header.file_size not in (info.file_size, *elsewhere), "the size"),
        (info.compress_type == ZIP_STORED and sizes[0] != sizes[1], "the size"),
        # 4.5.3: some programs read the field even if the header has the sizes.
        (wide and wide != sizes, "the size"),
    ):
        if differs:
            return DIFFERS(field=Words(f"{field} in front of the data of"), name=name)
    version = header.extract_version
    if version > LATEST_VERSION:
        return NEWER(name=name, version=Words(f"{version // 10}.{version % 10}"))
    if sum(4 + len(value) for _, value in extra_fields(header.extra)) != len(header.extra):
        return LONG_FIELD(name=name)
    left = span.size - length - info.compress_size
    if left > (LONGEST_DATA_DESCRIPTOR if has_descriptor else 0):
        return SLACK(name=name)
    if has_descriptor and read(span.end - left, left) not in data_descriptors(info):
        return DIFFERS(field=Words("the checksum or the size after the data of"), name=name)
    return None


def _data_disagreement(name: str, span: MemberSpan, read: Read) -> Problem | None:
    try:
        for _ in content(name, span, read):
            pass
    except ArchiveError as error:
        return error.problem
    size = span.info.compress_size
    _, length = local_header(name, span, read)
    packed = read(span.start + length, size)
    has_slack = span.info.compress_type == ZIP_DEFLATED and deflated_length(packed) != size
    return SLACK(name=name) if has_slack else None
