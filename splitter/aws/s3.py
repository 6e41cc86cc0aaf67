"""Reads archives from S3 and writes batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.config import Config
from botocore.exceptions import ClientError, IncompleteReadError

from splitter.errors import TRANSIENT_TYPES, ExportError, Kind, is_kind, require_field
from splitter.sentences import Actor, Sentence

if TYPE_CHECKING:
    from botocore.model import OperationModel
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

MIB = 1024 * 1024

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_PARTS = 10_000
DOWNLOAD_PART_SIZE = 16 * MIB
PARALLEL_DOWNLOADS = 14
"""Concurrent ranged requests. AWS advises one connection for each 85 to 90 MB/s, and a large task
has 10 Gb/s. Each needs the memory of one piece:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-guidelines.html"""

PIECE = 128 * 1024
"""Bytes read from a response at a time. For larger pieces, Python gets memory from the operating
system each time, which has to clear it."""

READ_ATTEMPTS = 5

CLIENT_CONFIG = Config(
    # Adaptive: after a SlowDown the whole client sends fewer requests. In standard mode each
    # request backs off on its own, and many parallel requests fail.
    retries={"mode": "adaptive", "total_max_attempts": 5},
    max_pool_connections=128,  # one for each thread that sends requests
    connect_timeout=10,
    read_timeout=30,  # between two bytes; S3 sends some while it copies or completes
    # TLS protects the data. A CRC must be declared for the whole upload including copied parts, and
    # some stores would read the copied data again to compute it.
    request_checksum_calculation="when_required",
    # Without a CRC botocore would sign a SHA-256 of each part, which takes a third of the CPU time
    # of an upload.
    s3={"payload_signing_enabled": False},
)
"""The configuration of S3 clients: retries with exponential backoff and jitter."""


class ObjectError(ExportError):
    """The archive is missing, empty, replaced or not readable."""


NOT_READABLE = Sentence(
    "object.not-readable",
    "The export {key:long} in the bucket {bucket} may not be read by the batch service; please "
    "tell the operator.",
    Actor.OPERATOR,
    "Let the role of the tasks read this bucket (SplitterRole in deploy/stack.yaml), and check "
    "that BUCKET_OWNER, if it is set, is the account that owns it; then press Retry.",
)
NO_BUCKET = Sentence(
    "object.no-bucket",
    "There is no bucket {bucket}; please tell the operator.",
    Actor.OPERATOR,
    "Check whether the bucket was renamed or deleted, and whether BIOSPEX names the right one "
    "(ALLOWED_BUCKETS); then press Retry.",
)
NO_OBJECT = Sentence(
    "object.missing",
    "There is no export {key:long} in the bucket {bucket}; it may have expired: export it again.",
)
EMPTY_OBJECT = Sentence(
    "object.empty", "The export {key:long} in the bucket {bucket} is empty; export it again."
)
REPLACED_OBJECT = Sentence(
    "object.replaced",
    "The export {key:long} was replaced or deleted while it was read; ask for its batches again.",
    Actor.REQUESTER,
    "Press Retry if the archive at that key is the right one.",
)


@dataclass(frozen=True)
class StoredObject:
    """The result of HEAD for an object.

    Attributes:
        size: bytes.
        etag: the entity tag, including its quotes.
        metadata: the user-defined metadata.
    """

    size: int
    etag: str
    metadata: Mapping[str, str]


class Bucket:
    """The bucket of the archive and the batches."""

    def __init__(self, client: "S3Client", name: str, owner: str | None = None) -> None:
        """If ``owner`` is set, S3 refuses a bucket that belongs to another AWS account."""
        if owner:
            expect_owner(client, owner)
        self._client = client
        self.name = name

    @property
    def region(self) -> str:
        return self._client.meta.region_name

    def presigned_link(self, key: str, seconds: int) -> str:
        """A URL with which anybody can download an object for this many seconds."""
        return self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self.name, "Key": key}, ExpiresIn=seconds
        )

    def find(self, key: str) -> StoredObject | None:
        """The object at ``key``, or None."""
        try:
            head = self._client.head_object(Bucket=self.name, Key=key)
        except ClientError as error:
            if is_kind(error, Kind.MISSING):
                return None
            raise
        return StoredObject(head["ContentLength"], head["ETag"], head["Metadata"])

    def holds(self, key: str, size: int, metadata: Mapping[str, str]) -> bool:
        """Whether the object at ``key`` has this size and metadata."""
        found = self.find(key)
        return found is not None and found.size == size and found.metadata == metadata

    def archive(self, key: str) -> StoredObject:
        """The archive at ``key``.

        Raises:
            ObjectError: if it is missing, empty or not readable.
        """
        try:
            found = self.find(key)
        except ClientError as error:
            if is_kind(error, Kind.REFUSED):
                raise ObjectError(NOT_READABLE, key=key, bucket=self.name) from error
            raise
        if found is None:
            if not self._exists():
                raise ObjectError(NO_BUCKET, bucket=self.name)
            raise ObjectError(NO_OBJECT, key=key, bucket=self.name)
        if not found.size:
            raise ObjectError(EMPTY_OBJECT, key=key, bucket=self.name)
        return found

    def _exists(self) -> bool:
        """Whether the bucket exists or S3 does not reveal it. HEAD of an object cannot tell."""
        try:
            self._client.head_bucket(Bucket=self.name)
        except ClientError as error:
            return not is_kind(error, Kind.MISSING)
        return True

    def download(
        self,
        key: str,
        source: StoredObject,
        path: Path,
        progress: Callable[[int], object],
        arrived: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Download an object with parallel ranged requests.

        boto3's ``download_file`` takes 50 % more CPU time and cannot require an ETag.

        Args:
            source: the object at the start of the run.
            progress: called from any thread with the number of bytes received since the last call.
            arrived: called with the number of bytes that are on disk without a gap.

        Raises:
            ObjectError: if the object was replaced since then.
        """
        path.touch()

        def fetch(start: int) -> int:
            length = min(DOWNLOAD_PART_SIZE, source.size - start)
            with path.open("r+b") as file:
                file.seek(start)
                for piece in self.pieces(key, source.etag, start, length):
                    file.write(piece)
                    progress(len(piece))
            return start + length

        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            try:
                for end in pool.map(fetch, range(0, source.size, DOWNLOAD_PART_SIZE)):
                    arrived(end)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def read(self, key: str, etag: str, start: int, length: int) -> bytes:
        """``length`` bytes of an object from offset ``start``.

        Raises:
            ObjectError: if the object no longer has this ETag.
        """
        return b"".join(self.pieces(key, etag, start, length))

    def pieces(self, key: str, etag: str, start: int, length: int) -> Iterator[bytes]:
        """Like ``read``, but in pieces. Resumes after a broken response."""
        end = start + length
        # The client retries requests, but does not resume responses.
        for attempts_left in reversed(range(READ_ATTEMPTS)):
            with unchanged_source(key):
                answer = self._client.get_object(
                    Bucket=self.name, Key=key, Range=f"bytes={start}-{end - 1}", IfMatch=etag
                )
            try:
                with closing(answer["Body"]) as body:
                    while start < end:
                        piece = body.read(min(PIECE, end - start))
                        if not piece:
                            raise IncompleteReadError(
                                actual_bytes=length - (end - start), expected_bytes=length
                            )
                        start += len(piece)
                        yield piece
                return
            except TRANSIENT_TYPES:
                if not attempts_left:
                    raise

    def put(self, key: str, content: bytearray, metadata: Mapping[str, str]) -> None:
        """Upload a ZIP in one request."""
        self._client.put_object(
            Bucket=self.name,
            Key=key,
            Body=content,  # type: ignore[arg-type]  # the stubs leave out bytearray
            ContentType="application/zip",
            Metadata=metadata,
        )

    def begin_upload(self, key: str, metadata: Mapping[str, str]) -> "MultipartUpload":
        """Begin a multipart upload of a ZIP. The object appears on completion."""
        answer = self._client.create_multipart_upload(
            Bucket=self.name,
            Key=key,
            ContentType="application/zip",
            Metadata=metadata,
        )
        return MultipartUpload(self._client, self.name, key, require_field(answer, "UploadId"))

    def abort_uploads(self, prefix: str) -> Iterator[str]:
        """Abort open uploads with keys of ``prefix``, a number and ``.zip``; yields the keys.

        A running process whose upload is aborted gets NoSuchUpload and retries.
        """
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self.name, Prefix=prefix
        )
        for upload in (upload for page in pages for upload in page.get("Uploads", ())):
            key = upload["Key"]
            if key.removeprefix(prefix).removesuffix(".zip").isdecimal():
                MultipartUpload(self._client, self.name, key, upload["UploadId"]).abort()
                yield key

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)


class MultipartUpload:
    """A multipart upload. Parts may be sent in any order and from any thread.

    Part numbers start at 1: https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
    """

    def __init__(self, client: "S3Client", bucket: str, key: str, upload_id: str) -> None:
        self._client = client
        self._bucket = bucket
        self._target: dict[str, Any] = {"Bucket": bucket, "Key": key, "UploadId": upload_id}

    def copy_part(
        self, number: int, source_key: str, source_etag: str, start: int, end: int
    ) -> "CompletedPartTypeDef":
        """Copy bytes ``start`` to ``end`` (excluded) of another object of the bucket within S3.

        Raises:
            ObjectError: if that object no longer has this ETag.
        """
        with unchanged_source(source_key):
            answer = self._client.upload_part_copy(
                **self._target,
                PartNumber=number,
                CopySource={"Bucket": self._bucket, "Key": source_key},
                CopySourceRange=f"bytes={start}-{end - 1}",
                CopySourceIfMatch=source_etag,
            )
        return {
            "PartNumber": number,
            "ETag": require_field(require_field(answer, "CopyPartResult"), "ETag"),
        }

    def upload_part(self, number: int, content: bytearray) -> "CompletedPartTypeDef":
        answer = self._client.upload_part(
            **self._target,
            PartNumber=number,
            Body=content,  # type: ignore[arg-type]  # the stubs leave out bytearray
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def complete(self, parts: "Sequence[CompletedPartTypeDef]") -> None:
        self._client.complete_multipart_upload(**self._target, MultipartUpload={"Parts": parts})

    def abort(self) -> None:
        """Abort the upload, unless it was completed or aborted already."""
        try:
            self._client.abort_multipart_upload(**self._target)
        except ClientError as error:
            if not is_kind(error, Kind.UPLOAD_GONE):
                raise


def expect_owner(client: "S3Client", account: str) -> None:
    """Add the expected owner of the bucket to every request of a client, including copies.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucket-owner-condition.html
    """

    def add(
        params: dict[str, Any], model: "OperationModel", context: dict[str, Any], **_: Any
    ) -> None:
        if context.get("is_presign_request"):
            return  # a browser cannot send the header
        for name in ("ExpectedBucketOwner", "ExpectedSourceBucketOwner"):
            if model.input_shape and name in model.input_shape.members:
                params[name] = account

    client.meta.events.register("before-parameter-build.s3", add)


@contextmanager
def unchanged_source(key: str) -> Iterator[None]:
    """Raise ``ObjectError`` if the object was replaced or deleted."""
    try:
        yield
    except ClientError as error:
        if is_kind(error, Kind.REPLACED, Kind.MISSING):
            raise ObjectError(REPLACED_OBJECT, key=key) from error
        raise
