"""Batches put together inside S3: ranges of the archive, copied by S3, and one uploaded end.

A ZIP holds each member, compressed, in one run of bytes. The members of a batch, in the archive's
order, form a few long runs, usually one. So a batch is a multipart upload: S3 copies the runs, and
this machine uploads the batch's manifest and its central directory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, wait
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from zipfile import ZIP_STORED, ZipInfo
from zlib import crc32

from botocore.exceptions import BotoCoreError, ClientError

from flows.splitter import zip_records
from flows.splitter.archive import ArchiveError, DosDateTime
from flows.splitter.batch_zip import REGULAR_FILE
from flows.splitter.manifest import MANIFEST, Batch
from flows.splitter.storage import MAX_PARTS, MIB, Bucket, MultipartUpload, StoredObject
from flows.splitter.zip_index import Extent, ZipIndex

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PARALLEL_PARTS = 8
"""Threads that send parts: S3 copies some 2 GiB at a time; a stream takes less than 80 MiB here."""

VERIFY_READ_AHEAD = 8 * MIB


class SpliceError(Exception):
    """S3 holds another object than it was asked to put together."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the parts of a batch; sizes in bytes.

    Attributes:
        least: of every part but the last.
        copied: of one copied part, at most. S3 takes 5 GiB; smaller parts are copied side by side.
        parts: of one upload, at most.
        gap: between two ranges, at most, to be fetched by one request. What is read in vain takes
            less time than another request.
    """

    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
    least: int = 5 * MIB
    copied: int = 256 * MIB
    parts: int = MAX_PARTS
    gap: int = 64 * 1024


S3_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of the archive: from ``start`` up to, not including, ``end``."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Fetch:
    """One ranged GET of the archive and what of it is kept: ascending ranges, small gaps between"""

    kept: tuple[Range, ...]

    @property
    def whole(self) -> Range:
        return Range(self.kept[0].start, self.kept[-1].end)


@dataclass(frozen=True, slots=True)
class Copied:
    """A part that S3 copies from the archive."""

    range: Range

    @property
    def size(self) -> int:
        return self.range.size


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A part that this machine uploads: ranges of the archive too short to copy, then ``end``."""

    fetches: tuple[Fetch, ...]
    end: bytes = b""

    @property
    def size(self) -> int:
        return sum(kept.size for fetch in self.fetches for kept in fetch.kept) + len(self.end)


@dataclass(frozen=True, slots=True)
class Plan:
    """How one batch is put together.

    Attributes:
        parts: in order; the last is uploaded. A batch of one part is a plain put.
        size: bytes of the batch.
    """

    parts: tuple[Copied | Uploaded, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Cost:
    """The S3 requests of some plans, and the bytes that pass through this machine.

    Attributes:
        copies: UploadPartCopy.
        puts: UploadPart and PutObject.
        posts: CreateMultipartUpload and CompleteMultipartUpload.
        gets: ranged GetObject.
        heads: HeadObject, one before and one after each batch.
        bytes_read, bytes_sent: of GETs and PUTs.
    """

    copies: int
    puts: int
    posts: int
    gets: int
    heads: int
    bytes_read: int
    bytes_sent: int


def plan_batch(
    batch: Batch,
    members: Mapping[str, Extent],
    modified: DosDateTime,
    limits: Limits = S3_LIMITS,
) -> Plan:
    """Lay out a batch: its images in the archive's order, its manifest, its central directory.

    Args:
        batch: what goes in.
        members: the archive's members by the names that the batch's rows use.
        modified: the time stamp of ``manifest.csv``.
    """
    infos: list[ZipInfo] = []
    runs: list[Range] = []
    end = 0
    for extent in sorted((members[name] for name in batch.images), key=lambda found: found.start):
        info = copy(extent.info)
        info.header_offset = end
        infos.append(info)
        end += extent.size
        if runs and runs[-1].end == extent.start:
            runs[-1] = Range(runs[-1].start, extent.end)
        else:
            runs.append(Range(extent.start, extent.end))
    infos.append(_manifest_info(batch.manifest, modified, header_offset=end))
    manifest = zip_records.local_file_header(infos[-1]) + batch.manifest
    directory = b"".join(zip_records.central_directory(infos, end + len(manifest)))
    size = end + len(manifest) + len(directory)
    return Plan(tuple(_parts(runs, manifest + directory, size, limits)), size)


def cost(plans: Iterable[Plan]) -> Cost:
    """What it takes to carry out ``plans``, where none of the batches is there yet."""
    plans = list(plans)
    uploads = [part for plan in plans for part in plan.parts if isinstance(part, Uploaded)]
    fetches = [fetch for upload in uploads for fetch in upload.fetches]
    return Cost(
        copies=sum(len(plan.parts) for plan in plans) - len(uploads),
        puts=len(uploads),
        posts=2 * sum(len(plan.parts) > 1 for plan in plans),
        gets=len(fetches),
        heads=2 * len(plans),
        bytes_read=sum(fetch.whole.size for fetch in fetches),
        bytes_sent=sum(upload.size for upload in uploads),
    )


def splice(
    plan: Plan,
    bucket: Bucket,
    source_key: str,
    source: StoredObject,
    key: str,
    metadata: Mapping[str, str],
    pool: Executor,
    progress: Callable[[int], object],
) -> bool:
    """Put a batch together in S3, unless an object of that size and metadata is there.

    Whole or not at all: S3 shows a multipart upload only when it is complete.

    Args:
        source: what ``source_key`` was when it was planned.
        pool: sends the parts, of any number of batches. Its threads, ``PARALLEL_PARTS`` of them,
            bound the requests under way and the memory: each holds one uploaded part, of less than
            10 MiB and what the batch ends with. It must not be the pool that runs this function.
        progress: told the number of bytes in place since the last call, from any thread.

    Returns:
        False if there was nothing to do.

    Raises:
        ObjectError: if the archive has been replaced.
        SpliceError: if what S3 put together has another size than planned; it is removed.
    """
    if bucket.holds(key, plan.size, metadata):
        progress(plan.size)
        return False
    read_into = partial(bucket.read_into, source_key, source.etag)
    match plan.parts:
        case [Uploaded() as only]:
            bucket.put(key, _content(only, read_into), metadata)
            progress(plan.size)
        case parts:
            upload = bucket.begin_upload(key, metadata)

            def send(number: int, part: Copied | Uploaded) -> "CompletedPartTypeDef":
                if isinstance(part, Copied):
                    start, end = part.range.start, part.range.end
                    sent = upload.copy_part(number, source_key, source.etag, start, end)
                else:
                    sent = upload.upload_part(number, _content(part, read_into))
                progress(part.size)
                return sent

            _complete(upload, [partial(send, *numbered) for numbered in enumerate(parts, 1)], pool)
    found = bucket.find(key)
    if not found or found.size != plan.size:
        bucket.delete(key)
        size = found.size if found else 0
        raise SpliceError(f"{key} has {size:,} bytes instead of {plan.size:,}.")
    return True


def verify(bucket: Bucket, key: str, batch: Batch) -> None:
    """Read a batch back from S3 and check its names, its manifest and every member's CRC.

    Takes a few MiB of memory and no disk. An object that fails is removed.

    Raises:
        ArchiveError: if the archive that the batch was spliced from is damaged.
        SpliceError: if the batch is not what it should be.
    """
    stored = bucket.find(key)
    if stored is None:
        raise SpliceError(f"{key} is not there.")
    try:
        read = partial(bucket.read, key, stored.etag)
        index = ZipIndex(read, stored.size, VERIFY_READ_AHEAD)
        if index.members.keys() != {MANIFEST, *batch.images}:
            raise SpliceError(f"{key} does not hold the images it should.")
        if index.read(MANIFEST) != batch.manifest:
            raise SpliceError(f"{key} does not hold the rows it should.")
        for name in index.members:  # in the order of their bytes
            index.check(name)
    except (ArchiveError, SpliceError):
        bucket.delete(key)
        raise


def _manifest_info(manifest: bytes, modified: DosDateTime, header_offset: int) -> ZipInfo:
    """Stored, as in the other lane: no version of zlib has a say in the batch's bytes."""
    info = ZipInfo(MANIFEST, modified)
    info.compress_type = ZIP_STORED
    info.create_system = 3  # Unix, whose attributes follow, on whichever system this runs
    info.external_attr = REGULAR_FILE
    info.CRC = crc32(manifest)
    info.file_size = info.compress_size = len(manifest)
    info.header_offset = header_offset
    return info


def _parts(
    runs: Iterable[Range], end: bytes, size: int, limits: Limits
) -> Iterator[Copied | Uploaded]:
    """Cut ``runs``, in their order, into copied and uploaded parts; the last ends with ``end``.

    A run too short for a part of its own waits for the bytes that follow, up to the front of a
    long run, until together they are a part.
    """
    least = max(limits.least, -(-size // (limits.parts - 1)))
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
            yield Uploaded(_fetches(waiting, least, limits.gap))
            waiting = []
            lacking = least
        if start < stop:
            yield from map(Copied, _even(Range(start, stop), max(limits.copied, 2 * least)))
    yield Uploaded(_fetches(waiting, least, limits.gap), end)


def _even(whole: Range, most: int) -> Iterator[Range]:
    """As few pieces as may be of at most ``most`` bytes, all of the same size, give or take one."""
    count = -(-whole.size // most)
    cuts = [whole.start + whole.size * i // count for i in range(count + 1)]
    return map(Range, cuts, cuts[1:])


def _fetches(ranges: Iterable[Range], longest: int, gap: int) -> tuple[Fetch, ...]:
    """Ranges up to ``gap`` apart as one request, of ``longest`` bytes unless a range is longer."""
    groups: list[list[Range]] = []
    for found in ranges:
        near = groups and found.start - groups[-1][-1].end <= gap
        if near and found.end - groups[-1][0].start <= longest:
            groups[-1].append(found)
        else:
            groups.append([found])
    return tuple(Fetch(tuple(group)) for group in groups)


def _content(part: Uploaded, read_into: Callable[[int, Sequence[memoryview]], None]) -> bytearray:
    """The bytes of an uploaded part, put where they belong as they arrive."""
    content = bytearray(part.size)
    rest = memoryview(content)
    for fetch in part.fetches:
        buffers: list[memoryview] = []
        position = fetch.whole.start
        for kept in fetch.kept:
            buffers += [memoryview(bytearray(kept.start - position)), rest[: kept.size]]
            rest = rest[kept.size :]
            position = kept.end
        read_into(fetch.whole.start, buffers)
    rest[:] = part.end
    return content


def _complete(
    upload: MultipartUpload,
    sends: Iterable[Callable[[], "CompletedPartTypeDef"]],
    pool: Executor,
) -> None:
    """Send the parts and complete the upload, or leave nothing behind."""
    futures = [pool.submit(send) for send in sends]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
        upload.complete([future.result() for future in futures])
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)  # S3 may keep a part that arrives after the abort
        # What an abort leaves, the bucket's rule for incomplete uploads removes; the first error
        # is the one that counts.
        with suppress(BotoCoreError, ClientError):
            upload.abort()
        raise
