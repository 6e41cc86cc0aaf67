"""The export of one run, and the lane it takes: spliced inside S3, or extracted on a disk."""

from collections.abc import Callable
from typing import Any

from splitter import archive, manifest
from splitter.errors import SetupError
from splitter.members import Limits
from splitter.messages import Request
from splitter.settings import Settings
from splitter.storage import Bucket, StoredObject
from splitter.zip_index import ZipIndex, ranged_file


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

    def index(self) -> ZipIndex:
        """Where the members of the archive, a ZIP, stand."""
        return ZipIndex(ranged_file(self.read, self.source.size), self.limits)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_bucket": None}


def choose_lane(
    export: Export, settings: Settings, read_index: Callable[[Export], ZipIndex] = Export.index
) -> tuple[ZipIndex | None, str]:
    """The index of an archive that is to be spliced, or None for one to be extracted; and why.

    Raises:
        ArchiveError: if the archive is of no known format or its index is broken.
        SetupError: if SPLIT_STRATEGY asks for a splice of what cannot be spliced.
    """
    size = export.source.size
    if settings.split_strategy == "extract":
        return None, "SPLIT_STRATEGY asks for it"
    format = archive.identify(export.read(0, min(archive.MAGIC_LENGTH, size)))
    if format != "zip":
        why = f"a {format} archive cannot be copied piece by piece"
    elif settings.split_strategy == "auto" and size <= settings.splice_min_size:
        return None, f"{size:,} bytes are not above SPLICE_MIN_SIZE, and are checked this way"
    else:
        index = read_index(export)
        folder = manifest.folder_of(manifest.find(index.members))
        why = index.why_not_spliceable(folder) or ""
        if not why:
            return index, "every member of the ZIP can be copied inside S3"
    if settings.split_strategy == "splice":
        raise SetupError(f"SPLIT_STRATEGY is splice, but {why}; auto would extract it.")
    return None, why
