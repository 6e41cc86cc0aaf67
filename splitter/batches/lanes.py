"""The export of one run and its lane: spliced inside S3, or extracted on a disk."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from splitter.archives import Contents, Limits, ZipIndex, formats, zip_sample
from splitter.aws import Bucket, StoredObject
from splitter.aws.s3 import MIB
from splitter.errors import SetupError
from splitter.manifest import Partition, partition_export
from splitter.manifest import partition as manifest
from splitter.messages import Request
from splitter.sentences import MAX_ADDRESS, Actor, Sentence, escaped
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


class Export:
    """A request, its archive at the start of the run, and the limits of archives.

    An unpickled export, in another process, connects when it is used.
    """

    def __init__(
        self,
        request: Request,
        source: StoredObject,
        limits: Limits,
        connect: Callable[[str], Bucket],
        bucket: Bucket | None = None,
    ) -> None:
        """``connect`` returns the bucket of a name; it is pickled with the export."""
        self.request = request
        self.source = source
        self.limits = limits
        self._connect = connect
        self._bucket = bucket

    @property
    def bucket(self) -> Bucket:
        self._bucket = self._bucket or self._connect(self.request.s3_bucket)
        return self._bucket

    def read(self, start: int, length: int) -> bytes:
        """Bytes of the archive, read in parallel ranges; fails if the archive was replaced."""
        read = partial(self.bucket.read, self.request.export_path, self.source.etag)
        if length <= RANGE:
            return read(start, length)
        starts = range(start, start + length, RANGE)
        lengths = [min(RANGE, start + length - each) for each in starts]
        with ThreadPoolExecutor(PARALLEL_RANGES) as pool:
            return b"".join(pool.map(read, starts, lengths))

    def identify(self) -> formats.Format:
        """The archive's format, by its content.

        Raises:
            ArchiveError: if it cannot be read, with its actual kind.
        """
        return formats.identify(self.read, self.source.size)

    def index(self) -> ZipIndex:
        """The places of the members of a ZIP."""
        return ZipIndex(self.read, self.source.size, self.limits)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_bucket": None}


@dataclass(frozen=True)
class Splice:
    """S3 itself copies the members of the archive into the batches.

    Attributes:
        reason: for this lane, for the summary.
    """

    index: ZipIndex
    parts: Partition
    reason: str


@dataclass(frozen=True)
class Extract:
    """The archive is downloaded, unpacked and zipped again.

    Attributes:
        reason: as in ``Splice``.
        index: of a ZIP; None for a tar.
    """

    reason: str
    index: ZipIndex | None = None

    @property
    def unpacked(self) -> int | None:
        """Bytes of the members, where an index tells."""
        if not self.index:
            return None
        return sum(span.info.file_size for span in self.index.members.values())


Lane = Splice | Extract


@dataclass(frozen=True)
class Spliceable:
    """A ZIP that S3 can copy, provided that its manifest spells the names as the ZIP does.

    Attributes:
        reason: as in ``Splice``.
    """

    index: ZipIndex
    reason: str

    def with_batches(self, parts: Partition, settings: Settings) -> Lane:
        """The lane, once the manifest has been read.

        Raises:
            SetupError: if SPLIT_STRATEGY asks for a splice, and the manifest rules it out.
        """
        if why := _respelled(parts):
            return _extract(why, settings, self.index)
        return Splice(self.index, parts, self.reason)


def partition_files(files: Contents | ZipIndex, settings: Settings) -> Partition:
    """The batches of an archive, by its files and its manifest.

    Raises:
        ManifestError: as ``partition_export``.
    """
    return partition_export(
        files.members,
        files.read,
        settings.image_column,
        settings.batch_size,
        files.unusable,
        settings.limits,
    )


def choose_lane(export: Export, settings: Settings) -> Lane:
    """The lane of an archive; a flow calls the same functions in its tasks.

    Raises:
        ExportError: if the archive is of no known format, its index is broken, or its manifest
            names files that the index does not list.
        SetupError: if SPLIT_STRATEGY asks for a splice of an archive that cannot be spliced.
    """
    format = export.identify()
    if format != "zip":
        return lane_of_tar(format, settings)
    index = export.index()
    lane = lane_of_zip(export, index, settings)
    if isinstance(lane, Spliceable):
        return lane.with_batches(partition_files(index, settings), settings)
    return lane


def lane_of_tar(format: formats.Format, settings: Settings) -> Extract:
    """The lane of a tar, which is always extracted.

    Raises:
        SetupError: if SPLIT_STRATEGY asks for a splice.
    """
    if settings.split_strategy == "extract":
        return Extract("SPLIT_STRATEGY asks for it")
    return _extract(f"a {format} archive cannot be copied piece by piece", settings)


def lane_of_zip(export: Export, index: ZipIndex, settings: Settings) -> Extract | Spliceable:
    """The lane of a ZIP as far as its index decides it.

    Raises:
        ExportError: if the manifest names a file that cannot be read.
        SetupError: if SPLIT_STRATEGY asks for a splice of a ZIP that cannot be spliced.
    """
    name = manifest.find([*index.members, *index.unusable])
    if index.unusable:
        partition_files(index, settings)  # refuses a row that names one
    if settings.split_strategy == "extract":
        return Extract("SPLIT_STRATEGY asks for it", index)
    if settings.split_strategy == "auto" and export.source.size <= settings.splice_min_size:
        why = "archives up to SPLICE_MIN_SIZE are extracted, which checks every image"
        return Extract(why, index)
    why = index.why_not_spliceable(manifest.folder_of(name)) or ""
    if not why:
        disagreement, looked = zip_sample.disagreement(index, export.read)
        if not disagreement:
            return Spliceable(index, f"S3 can copy every file; {looked}")
        why = disagreement
    return _extract(why, settings, index)


def _extract(why: str, settings: Settings, index: ZipIndex | None = None) -> Extract:
    if settings.split_strategy == "splice":
        raise SetupError(CANNOT_SPLICE, why=why)
    return Extract(escaped(why, MAX_ADDRESS), index)  # the reason may name files


def _respelled(parts: Partition) -> str:
    """The reason why batches that rename members cannot be spliced, or ""."""
    for image, file in parts.images.items():
        if file != parts.folder + image:
            return f"its manifest spells '{file}' in another way"
    return ""
