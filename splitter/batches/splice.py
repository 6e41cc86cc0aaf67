"""Assembles batches inside S3: S3 copies ranges of the archive, this machine uploads the end.

A ZIP stores each member, compressed, in one run of bytes. The members of a batch, in the archive's
order, form a few long runs, usually one. So a batch is a multipart upload: S3 copies the runs, and
this machine uploads the batch's manifest and central directory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from zipfile import ZipInfo

from splitter.archives import (
    DEFAULT_LIMITS,
    ArchiveError,
    DosDateTime,
    Limits,
    MemberSpan,
    ZipIndex,
    zip_records,
)
from splitter.archives.spliceable import header_disagreement
from splitter.archives.zip_directory import Read
from splitter.aws import Bucket, StoredObject
from splitter.aws.s3 import MAX_PARTS, MIB
from splitter.batches.assembly import (
    PARALLEL_BATCHES,
    PARALLEL_PARTS,
    AssemblyError,
    CopiedPart,
    Part,
    SentPart,
)
from splitter.batches.windows import Gathered, Range, Windows, windows_over
from splitter.manifest import MANIFEST, Batch, Partition
from splitter.sentences import Sentence

VERIFY_WINDOW = 8 * MIB
"""Bytes of a request that reads a batch back. Each batch that is being verified keeps so many."""

DISAGREES = Sentence(
    "archive.zip-disagrees-with-itself",
    "The archive is damaged: {what}; export it again.",
)


@dataclass(frozen=True, slots=True)
class PartLimits:
    """The limits of a batch's parts; sizes in bytes.

    Attributes:
        min_part_size: of every part but the last.
        max_copy_size: of one copied part, at most. S3 takes 5 GiB; smaller parts are copied side by
            side, and three batches of 2 GB fill PARALLEL_COPIES.
        max_parts: of one upload.
        max_gap: between two ranges that one request reads. Unneeded bytes take less time than
            another request.
        window: bytes that one request reads, at most.
        batches: that share each window. In a shuffled archive, all of them need bytes of the same
            stretch, so each has a part in memory that is being filled.
    """

    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
    min_part_size: int = 5 * MIB
    max_copy_size: int = 64 * MIB
    max_parts: int = MAX_PARTS
    max_gap: int = 64 * 1024
    window: int = 4 * MIB
    batches: int = PARALLEL_BATCHES


S3_LIMITS = PartLimits()


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A part that this machine uploads: ranges of the archive too short to copy, then ``end``."""

    ranges: tuple[Range, ...]
    end: bytes = b""

    @property
    def size(self) -> int:
        return sum(found.size for found in self.ranges) + len(self.end)


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of one batch.

    Attributes:
        parts: in order; S3 copies a ``Range`` of the archive. The last is uploaded. A batch of one
            part is a plain put.
        size: bytes of the batch.
    """

    parts: tuple[Range | Uploaded, ...]
    size: int


def plan(cut: Partition, index: ZipIndex) -> list[Plan]:
    """The plans of an export's batches, whose rows name the images as the index does."""
    modified = index.members[cut.manifest].info.date_time
    return [plan_batch(batch, index.members, modified) for batch in cut.batches]


def plan_batch(
    batch: Batch,
    members: Mapping[str, MemberSpan],
    modified: DosDateTime,
    limits: PartLimits = S3_LIMITS,
) -> Plan:
    """The plan of a batch: images in the archive's order, manifest, central directory.

    Args:
        batch: its rows and images.
        members: the archive's members by name.
        modified: the time stamp of ``manifest.csv``.
    """
    infos: list[ZipInfo] = []
    runs: list[Range] = []
    end = 0
    for span in sorted((members[name] for name in batch.images), key=lambda found: found.start):
        info = copy(span.info)
        # The archive's mode may be unreadable, setuid or hidden; a batch holds plain files.
        info.create_system, info.external_attr = zip_records.UNIX, zip_records.REGULAR_FILE
        info.header_offset = end
        infos.append(info)
        end += span.size
        if runs and runs[-1].end == span.start:
            runs[-1] = Range(runs[-1].start, span.end)
        else:
            runs.append(Range(span.start, span.end))
    # Stored, as in the other lane: the batch's bytes must not depend on the version of zlib.
    info, manifest = zip_records.stored_file(MANIFEST, batch.manifest, modified, end)
    infos.append(info)
    directory = b"".join(zip_records.central_directory(infos, end + len(manifest)))
    size = end + len(manifest) + len(directory)
    return Plan(tuple(_parts(runs, manifest + directory, size, limits)), size)


def reads(plans: Sequence[Plan], limits: PartLimits = S3_LIMITS) -> list[Range]:
    """The ranges of the archive, one a request, that this machine reads for ``plans``."""
    return [window for some in _groups(plans, limits) for window in _windows(some, limits)]


def parts(
    plans: Sequence[Plan],
    bucket: Bucket,
    key: str,
    source: StoredObject,
    limits: PartLimits = S3_LIMITS,
) -> list[list[Part]]:
    """The parts of each batch, to be assembled in ``bucket``.

    Args:
        key, source: of the archive of the plans; if it is replaced, its parts fail.
    """
    read = partial(bucket.pieces, key, source.etag)
    batches: list[list[Part]] = []
    for some in _groups(plans, limits):
        # A part of each batch, and some that begin where those end.
        windows = Windows(_windows(some, limits), len(some) + PARALLEL_PARTS, read)
        for plan in some:
            batches.append([_part(part, key, source, windows) for part in plan.parts])
    return batches


def verify(bucket: Bucket, key: str, batch: Batch, limits: Limits = DEFAULT_LIMITS) -> None:
    """Read a batch back from S3 and check its names, manifest, headers and every member's CRC.

    It takes a few MiB of memory and no disk. An object that fails the check is deleted.

    Raises:
        ArchiveError: if the archive that the batch was spliced from is damaged.
        AssemblyError: if the batch has other images or rows.
    """
    stored = bucket.find(key)
    if stored is None:
        raise AssemblyError(f"{key} does not exist.")
    try:
        read = partial(bucket.read, key, stored.etag)
        index = ZipIndex(_read_ahead(read, stored.size), stored.size, limits)
        if index.members.keys() != {MANIFEST, *batch.images}:
            raise AssemblyError(f"{key} does not hold the images it should.")
        if index.read(MANIFEST, limits) != batch.manifest:
            raise AssemblyError(f"{key} does not hold the rows it should.")
        for name, span in index.members.items():  # in the order of their bytes
            if what := header_disagreement(name, span, index.read_at):
                raise ArchiveError(DISAGREES, what=what)
            for _ in index.chunks(name):
                pass
    except (ArchiveError, AssemblyError):
        bucket.delete(key)
        raise


def _read_ahead(read: Read, size: int) -> Read:
    """``read`` for one thread that reads forward, by long requests; the last answer is kept."""
    kept, data = 0, b""

    def ahead(offset: int, length: int) -> bytes:
        nonlocal kept, data
        if not kept <= offset <= offset + length <= kept + len(data):
            kept, data = offset, read(offset, min(max(length, VERIFY_WINDOW), size - offset))
        return data[offset - kept :][:length]

    return ahead


def _parts(
    runs: Iterable[Range], end: bytes, size: int, limits: PartLimits
) -> Iterator[Range | Uploaded]:
    """Cut ``runs``, in their order, into copied and uploaded parts; the last ends with ``end``.

    A run that is too short to copy becomes an uploaded part, together with the runs behind it or
    the front of a long run.
    """
    least = max(limits.min_part_size, -(-size // (limits.max_parts - 1)))
    waiting: list[Range] = []
    lacking = least
    for start, stop in ((run.start, run.end) for run in runs):
        if waiting or stop - start < least:
            cut = min(stop, start + lacking)
            if stop - cut < least:
                cut = stop
            waiting.append(Range(start, cut))
            lacking -= cut - start
            start = cut
        if lacking <= 0:
            yield Uploaded(tuple(waiting))
            waiting = []
            lacking = least
        if start < stop:
            yield from _even(Range(start, stop), max(limits.max_copy_size, 2 * least))
    yield Uploaded(tuple(waiting), end)


def _even(whole: Range, most: int) -> Iterator[Range]:
    """The fewest pieces of at most ``most`` bytes, whose sizes differ by one byte at most."""
    count = -(-whole.size // most)
    cuts = [whole.start + whole.size * i // count for i in range(count + 1)]
    return map(Range, cuts, cuts[1:])


def _groups(plans: Sequence[Plan], limits: PartLimits) -> Iterator[Sequence[Plan]]:
    """The plans whose batches are assembled at the same time and share windows."""
    for first in range(0, len(plans), limits.batches):
        yield plans[first : first + limits.batches]


def _windows(plans: Iterable[Plan], limits: PartLimits) -> list[Range]:
    """The ranges, one a request, to read for the uploaded parts of some batches."""
    uploads = (part for plan in plans for part in plan.parts if isinstance(part, Uploaded))
    ranges = (found for part in uploads for found in part.ranges)
    return list(windows_over(ranges, limits.window, limits.max_gap))


def _part(part: Range | Uploaded, key: str, source: StoredObject, windows: Windows) -> Part:
    if isinstance(part, Range):
        return CopiedPart(key, source.etag, part.start, part.end)
    gathered = Gathered(windows, part.ranges, part.end)
    # In the order of the archive, so that the batches read it together.
    position = part.ranges[-1].end if part.ranges else 0
    return SentPart(part.size, gathered.read, position, gathered.expect, gathered.drop)
