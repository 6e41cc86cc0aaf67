"""S3: the archive on its way down, the batches on their way up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

from flows.splitter.errors import ExportError, error_code

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1024 * 1024

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_PARTS = 10_000
MAX_OBJECT_SIZE = 5 * 1024**4
PART_SIZE = 8 * MIB

CLIENT_CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": 5},
    max_pool_connections=32,
    connect_timeout=10,
    read_timeout=60,
)
"""How a client for this module is to be made: retries with exponential backoff and jitter."""


class ObjectError(ExportError):
    """An archive that is not where the request says."""


@dataclass(frozen=True)
class StoredObject:
    """An object as S3 describes it.

    Attributes:
        size: bytes.
        etag: its entity tag, with the quotes that belong to it.
        metadata: what its writer said about it.
    """

    size: int
    etag: str
    metadata: Mapping[str, str]


class Bucket:
    """The bucket that holds the archive and gets the batches."""

    def __init__(self, client: "S3Client", name: str) -> None:
        self._client = client
        self.name = name

    def find(self, key: str) -> StoredObject | None:
        """The object at ``key``, or None."""
        try:
            head = self._client.head_object(Bucket=self.name, Key=key)
        except ClientError as error:
            if error_code(error) in ("404", "NoSuchKey", "NotFound"):
                return None
            raise
        return StoredObject(head["ContentLength"], head["ETag"], head["Metadata"])

    def archive(self, key: str) -> StoredObject:
        """The archive at ``key``.

        Raises:
            ObjectError: if there is none, if it is empty, or if S3 does not let us read it.
        """
        try:
            found = self.find(key)
        except ClientError as error:
            if error_code(error) in ("403", "AccessDenied", "AllAccessDisabled"):
                raise ObjectError(
                    f"The export {key} in the bucket {self.name} may not be read by the batch "
                    "service; check the bucket's name, or ask the operator for the permission."
                ) from error
            raise
        if found is None:
            raise ObjectError(
                f"There is no export {key} in the bucket {self.name}; it may have expired: "
                "export it again."
            )
        if not found.size:
            raise ObjectError(f"The export {key} in the bucket {self.name} is empty; export again.")
        return found

    def download(self, key: str, path: Path, progress: Callable[[int], object]) -> None:
        """Fetch an object by parallel ranged requests.

        Args:
            progress: told the number of bytes received since the last call, from any thread.
        """
        self._client.download_file(
            self.name,
            key,
            str(path),
            Callback=progress,
            Config=TransferConfig(
                multipart_threshold=2 * PART_SIZE,
                multipart_chunksize=2 * PART_SIZE,
                max_concurrency=8,
            ),
        )

    def upload(
        self,
        content: RawIOBase,
        size: int,
        key: str,
        metadata: Mapping[str, str],
        progress: Callable[[int], object],
    ) -> None:
        """Put a ZIP from a stream, whole or not at all: S3 shows a multipart upload when it ends.

        Args:
            content: read once, from start to end, a few parts ahead of what S3 has taken.
            size: bytes that ``content`` will give.
            progress: told the number of bytes sent since the last call, from any thread.
        """
        config = TransferConfig(
            multipart_threshold=PART_SIZE,
            multipart_chunksize=part_size(size),
            max_concurrency=4,
        )
        # boto3 keeps up to ten parts of a stream in memory, which its own options do not reach.
        config.max_in_memory_upload_chunks = 4
        self._client.upload_fileobj(
            content,
            self.name,
            key,
            ExtraArgs={"ContentType": "application/zip", "Metadata": dict(metadata)},
            Callback=progress,
            Config=config,
        )


def part_size(size: int) -> int:
    """Bytes of a part, so that an object of ``size`` bytes needs no more parts than S3 takes."""
    return max(PART_SIZE, -(-size // MAX_PARTS))
