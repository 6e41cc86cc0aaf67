"""The export of one run, and the lane it takes: spliced inside S3, or extracted on a disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from splitter.archives import formats, zip_sample
from splitter.archives.members import Limits
from splitter.archives.zip_index import ZipIndex
from splitter.aws.s3 import Bucket, StoredObject
from splitter.errors import SetupError
from splitter.manifest import partition as manifest
from splitter.manifest.partition import Partition
from splitter.messages import Request
from splitter.sentences import Actor, Sentence
from splitter.settings import Settings

CANNOT_SPLICE = Sentence(
    "lane.cannot-splice",
    "SPLIT_STRATEGY is splice, but {why:bare}.",
    Actor.OPERATOR,
    "Set SPLIT_STRATEGY to auto, then press Retry.",
)


class Export:
    """What is asked for, the archive as it was found, and what it may be.

    Pickled, for another process, it connects there by itself, when it is used.
    """

    def __init__(
        self,
        request: Request,
        source: StoredObject,
        limits: Limits,
        connect: Callable[[str], Bucket],
        bucket: Bucket | None = None,
    ) -> None:
        """``connect``: gives the bucket of that name, in any process; a function of a module."""
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
        """Bytes of the archive, as it was when the run began."""
        return self.bucket.read(self.request.export_path, self.source.etag, start, length)

    def identify(self) -> formats.Format:
        """The archive's format, by its content.

        Raises:
            ArchiveError: if it is none that can be read, with what it is instead.
        """
        return formats.identify(self.read, self.source.size)

    def index(self) -> ZipIndex:
        """Where the members of the archive, a ZIP, stand."""
        return ZipIndex(self.read, self.source.size, self.limits)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_bucket": None}


@dataclass(frozen=True)
class Splice:
    """S3 itself copies the members of the archive into the batches.

    Attributes:
        reason: why, for the summary.
        remarks: what is unusual about the archive, for the summary.
    """

    index: ZipIndex
    parts: Partition
    reason: str
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Extract:
    """The archive is downloaded, unpacked and zipped anew.

    Attributes:
        reason, remarks: as for ``Splice``.
        unpacked: bytes of its members, where its index tells; else None.
    """

    reason: str
    remarks: Sequence[str] = ()
    unpacked: int | None = None


Lane = Splice | Extract


def partition_index(index: ZipIndex, settings: Settings) -> Partition:
    """The batches of a ZIP, by its index and its manifest.

    Raises:
        ManifestError: as ``manifest.partition_export``.
    """
    return manifest.partition_export(
        index.members,
        index.read,
        settings.image_column,
        settings.batch_size,
        settings.max_cells,
        index.unusable,
        settings.max_columns,
    )


def choose_lane(
    export: Export,
    settings: Settings,
    read_index: Callable[[Export], ZipIndex] = Export.index,
    partition: Callable[[ZipIndex, Settings], Partition] = partition_index,
) -> Lane:
    """Which way an archive goes; what its index rules out is refused before anything is fetched.

    Args:
        read_index, partition: the steps of it that a flow shows.

    Raises:
        ExportError: if the archive is of no known format, its index is broken, or its manifest
            does not fit what the index lists.
        SetupError: if SPLIT_STRATEGY asks for a splice of what cannot be spliced.
    """
    size = export.source.size
    format = export.identify()
    remarks: Sequence[str] = ()
    unpacked: int | None = None
    if format != "zip":
        if settings.split_strategy == "extract":
            return Extract("SPLIT_STRATEGY asks for it")
        why = f"a {format} archive cannot be copied piece by piece"
    else:
        index = read_index(export)
        remarks = index.remarks
        unpacked = sum(span.info.file_size for span in index.members.values())
        name = manifest.find([*index.members, *index.unusable])
        if index.unusable:
            partition_index(index, settings)  # which refuses a row that names one
        if settings.split_strategy == "extract":
            return Extract("SPLIT_STRATEGY asks for it", remarks, unpacked)
        if settings.split_strategy == "auto" and size <= settings.splice_min_size:
            why = "archives up to SPLICE_MIN_SIZE are extracted, which checks every image"
            return Extract(why, remarks, unpacked)
        why = index.why_not_spliceable(manifest.folder_of(name)) or ""
        if not why:
            disagreement, looked = zip_sample.disagreement(index, export.read)
            why = disagreement or ""
            if not why:
                parts = partition(index, settings)
                why = _respelled(parts)
                if not why:
                    return Splice(index, parts, f"S3 can copy every file; {looked}", remarks)
    if settings.split_strategy == "splice":
        raise SetupError(CANNOT_SPLICE, why=why)
    return Extract(why, remarks, unpacked)


def _respelled(parts: Partition) -> str:
    """Why batches whose names are other ones than the archive's cannot be spliced, or ""."""
    for image, file in parts.images.items():
        if file != parts.folder + image:
            return f"its manifest spells '{file}' in another way"
    return ""
