"""The export of one run and its lane: spliced inside S3, or extracted on a disk."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from splitter.archives import Contents, ZipIndex, identify
from splitter.archives.spliceable import copyable
from splitter.aws import Bucket, StoredObject
from splitter.aws.s3 import MIB
from splitter.errors import SetupError
from splitter.manifest import Partition, partition_export
from splitter.messages import Request
from splitter.sentences import Actor, Problem, Sentence, Words
from splitter.settings import Settings

RANGE = 2 * MIB
"""Bytes that one request reads, at most; those of an image come together."""

PARALLEL_RANGES = 16

CANNOT_SPLICE = Sentence(
    "lane.cannot-splice",
    "SPLIT_STRATEGY is splice, but {why:bare}.",
    Actor.OPERATOR,
    "Set SPLIT_STRATEGY to auto, then press Retry.",
)

ASKED = Sentence("lane.asked-for", "SPLIT_STRATEGY asks for it", Actor.NOBODY)
SMALL = Sentence(
    "lane.small-archive",
    "archives up to SPLICE_MIN_SIZE are extracted, which checks every image",
    Actor.NOBODY,
)
NO_ZIP = Sentence("lane.no-zip", "a {format} archive cannot be copied piece by piece", Actor.NOBODY)
RESPELLED = Sentence(
    "lane.names-spelled-differently", "its manifest spells {name} in another way", Actor.NOBODY
)


class Export:
    """A request and its archive.

    An unpickled export, in another process, connects when it is used.
    """

    def __init__(self, request: Request, connect: Callable[[str], Bucket]) -> None:
        """``connect`` returns the bucket of a name; it is pickled with the export."""
        self.request = request
        self._connect = connect

    @cached_property
    def bucket(self) -> Bucket:
        return self._connect(self.request.s3_bucket)

    @cached_property
    def source(self) -> StoredObject:
        """The archive as it was at the first look.

        Raises:
            ObjectError: if it is missing, empty or not readable.
        """
        return self.bucket.archive(self.request.export_path)

    def read(self, start: int, length: int) -> bytes:
        """Bytes of the archive, read in parallel ranges; fails if the archive was replaced."""
        read = partial(self.bucket.read, self.request.export_path, self.source.etag)
        if length <= RANGE:
            return read(start, length)
        starts = range(start, start + length, RANGE)
        lengths = [min(RANGE, start + length - each) for each in starts]
        with ThreadPoolExecutor(PARALLEL_RANGES) as pool:
            return b"".join(pool.map(read, starts, lengths))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "bucket"}


def index_of(export: Export, settings: Settings) -> ZipIndex:
    """The places of the members of a ZIP."""
    return ZipIndex(export.read, export.source.size, settings.limits)


def partition(files: Contents | ZipIndex, settings: Settings) -> Partition:
    """The batches of an archive, by its files and its manifest.

    Raises:
        ManifestError: as ``partition_export``.
    """
    limits = settings.limits
    parts = partition_export(
        files.members,
        partial(files.read, limits=limits),
        settings.image_column,
        settings.batch_size,
        files.unusable,
        limits,
    )
    return replace(parts, warnings=(*files.remarks, *parts.warnings))


@dataclass(frozen=True)
class Splice:
    """S3 itself copies the members of the archive into the batches.

    Attributes:
        reason: for this lane.
    """

    reason: Problem
    index: ZipIndex
    parts: Partition
    name = "splice"


@dataclass(frozen=True)
class Extract:
    """The archive is downloaded, unpacked and zipped again.

    Attributes:
        reason: for this lane.
        index, parts: of a ZIP; None for a tar.
    """

    reason: Problem
    index: ZipIndex | None = None
    parts: Partition | None = None
    name = "extract"


def choose_lane(
    export: Export,
    settings: Settings,
    read_index: Callable[[Export, Settings], ZipIndex] = index_of,
    partition: Callable[[ZipIndex, Settings], Partition] = partition,
) -> Splice | Extract:
    """The lane of an archive.

    Args:
        read_index, partition: functions of this module, which a flow calls in its tasks.

    Raises:
        ExportError: if the archive is of no known format, its index is broken, or its manifest
            names files that the index does not list.
        SetupError: if SPLIT_STRATEGY asks for a splice of an archive that cannot be spliced.
    """
    index = parts = None
    strategy = settings.split_strategy
    format = identify(export.read, export.source.size)
    if format == "zip":
        index = read_index(export, settings)
        parts = partition(index, settings)
    if strategy == "extract":
        return Extract(ASKED(), index, parts)
    if not index or not parts:
        reason = NO_ZIP(format=Words(format))
    elif strategy == "auto" and export.source.size <= settings.splice_min_size:
        return Extract(SMALL(), index, parts)
    else:
        can_splice, reason = _can_splice(index, parts)
        if can_splice:
            return Splice(reason, index, parts)
    if strategy == "splice":
        raise SetupError(CANNOT_SPLICE, why=reason)
    return Extract(reason, index, parts)


def _can_splice(index: ZipIndex, parts: Partition) -> tuple[bool, Problem]:
    """Whether a ZIP can be spliced, and the reason."""
    for image, file in parts.images.items():
        if file != parts.folder + image:
            return False, RESPELLED(name=file)
    return copyable(index, parts.folder)
