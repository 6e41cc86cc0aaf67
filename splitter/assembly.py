"""An object put together of parts: copied by S3 from another object, or sent from here."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from splitter.errors import Kind, is_kind
from splitter.storage import Bucket, MultipartUpload

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PARALLEL_PARTS = 8
"""Threads that send parts. They bound the requests under way, and the memory: each thread holds one
part that is sent, of about 8 MiB. S3 copies some 2 GiB at a time."""


class AssemblyError(Exception):
    """S3 holds another object than it was asked to put together."""


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that this machine sends.

    Attributes:
        size: bytes.
        content: makes them, when it is the part's turn.
    """

    size: int
    content: Callable[[], bytearray]

    def send(self, upload: MultipartUpload, number: int) -> "CompletedPartTypeDef":
        return upload.upload_part(number, self.content())


@dataclass(frozen=True, slots=True)
class CopiedPart:
    """A part that S3 copies: bytes from ``start`` up to ``end`` of an object with ``etag``."""

    key: str
    etag: str
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    def send(self, upload: MultipartUpload, number: int) -> "CompletedPartTypeDef":
        return upload.copy_part(number, self.key, self.etag, self.start, self.end)


Part = SentPart | CopiedPart


def assemble(
    bucket: Bucket,
    key: str,
    parts: Sequence[Part],
    metadata: Mapping[str, str],
    pool: Executor,
    progress: Callable[[int], object],
) -> bool:
    """Put a ZIP together in S3, unless an object of that size and metadata is there.

    Whole or not at all: S3 shows a multipart upload only when it is complete. A single part that is
    sent is a plain put.

    Args:
        parts: in order; all but the last of the size that S3 asks for.
        pool: sends the parts, of any number of objects; ``PARALLEL_PARTS`` threads. It must not be
            the pool that runs this function.
        progress: told the number of bytes in place since the last call, from any thread.

    Returns:
        False if there was nothing to do.

    Raises:
        ObjectError: if the object that parts are copied from has been replaced.
        AssemblyError: if the outcome has another size than the parts together; it is removed.
    """
    size = sum(part.size for part in parts)
    if bucket.holds(key, size, metadata):
        progress(size)
        return False
    match parts:
        case [SentPart() as only]:
            bucket.put(key, pool.submit(only.content).result(), metadata)
            progress(size)
        case _:
            try:
                _upload(bucket.begin_upload(key, metadata), parts, pool, progress)
            except ClientError as error:
                # An upload that is gone may be complete: the answer to that can have been lost.
                gone = is_kind(error, Kind.UPLOAD_GONE)
                if not (gone and bucket.holds(key, size, metadata)):
                    raise
    found = bucket.find(key)
    if not found or found.size != size:
        bucket.delete(key)
        having = found.size if found else 0
        raise AssemblyError(f"{key} has {having:,} bytes instead of {size:,}.")
    return True


def _upload(
    upload: MultipartUpload,
    parts: Sequence[Part],
    pool: Executor,
    progress: Callable[[int], object],
) -> None:
    """Send the parts and complete the upload, or leave nothing behind."""

    def send(number: int, part: Part) -> "CompletedPartTypeDef":
        sent = part.send(upload, number)
        progress(part.size)
        return sent

    futures = [pool.submit(partial(send, *numbered)) for numbered in enumerate(parts, 1)]
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
