"""An object put together of parts: copied by S3 from another object, or sent from here."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from queue import PriorityQueue
from typing import TYPE_CHECKING, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from splitter.aws.s3 import Bucket, MultipartUpload
from splitter.errors import Kind, is_kind

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

T = TypeVar("T")

PARALLEL_PARTS = 8
"""Threads that send parts. They bound the memory: each holds one part of about 8 MiB."""

PARALLEL_COPIES = 64
"""Copies under way. They take no memory and no bandwidth here. S3 copies about 85 MB a second in
each, so the requests stay far below the 3,500 a second that it takes for one prefix:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html"""

PARALLEL_BATCHES = 16
"""Objects put together at the same time. Their parts wait for the threads in shared queues."""


class AssemblyError(Exception):
    """S3 holds another object than it was asked to put together."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that this machine sends.

    Attributes:
        size: bytes.
        content: makes them, when it is the part's turn.
        position: in the archive, of its last byte. Of all parts that wait, the first is next.
        expect: called when the part begins to wait for its turn.
        drop: called when it is not sent after all.
    """

    size: int
    content: Callable[[], bytearray]
    position: int = 0
    expect: Callable[[], object] = _nothing
    drop: Callable[[], object] = _nothing

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

    def drop(self) -> None:
        pass

    def send(self, upload: MultipartUpload, number: int) -> "CompletedPartTypeDef":
        return upload.copy_part(number, self.key, self.etag, self.start, self.end)


Part = SentPart | CopiedPart


class PartPool:
    """Threads that put parts in place: some send parts, many others wait for copies.

    Copies start in the order in which they are submitted. Of the parts to be sent, the first in the
    archive is next, then the first submitted: batches that are fetched from all over an archive
    pass over it side by side in this way.
    """

    def __init__(self, senders: int = PARALLEL_PARTS, copies: int = PARALLEL_COPIES) -> None:
        """
        Args:
            senders: threads for parts that are sent.
            copies: that may be under way.
        """
        self._senders = ThreadPoolExecutor(senders)
        self._copiers = ThreadPoolExecutor(copies)
        self._waiting: PriorityQueue[tuple[int, int, Callable[[], None]]] = PriorityQueue()
        self._numbers = count()

    def __enter__(self) -> "PartPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, part: Part, work: Callable[[], T]) -> "Future[T]":
        """Have ``work`` done when it is the part's turn."""
        if isinstance(part, CopiedPart):
            return self._copiers.submit(work)
        part.expect()
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)

        self._waiting.put((part.position, next(self._numbers), run))
        self._senders.submit(self._run_first)
        return future

    def close(self) -> None:
        """Wait for what has been submitted."""
        self._copiers.shutdown()
        self._senders.shutdown()

    def _run_first(self) -> None:
        _, _, run = self._waiting.get_nowait()
        run()


def assemble(
    bucket: Bucket,
    key: str,
    parts: Sequence[Part],
    metadata: Mapping[str, str],
    pool: PartPool,
    progress: Callable[[int], object],
) -> bool:
    """Put a ZIP together in S3, unless an object of that size and metadata is there.

    Whole or not at all: S3 shows a multipart upload only when it is complete. A single part that is
    sent is a plain put.

    Args:
        parts: in order; all but the last of the size that S3 asks for.
        pool: sends the parts, of any number of objects.
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
            try:
                content = pool.submit(only, only.content).result()
            except BaseException:
                only.drop()
                raise
            bucket.put(key, content, metadata)
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
    pool: PartPool,
    progress: Callable[[int], object],
) -> None:
    """Send the parts and complete the upload, or leave nothing behind."""

    def send(number: int, part: Part) -> "CompletedPartTypeDef":
        sent = part.send(upload, number)
        progress(part.size)
        return sent

    futures = [
        pool.submit(part, partial(send, number, part)) for number, part in enumerate(parts, 1)
    ]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
        upload.complete([future.result() for future in futures])
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)  # S3 may keep a part that arrives after the abort
        for part in parts:
            part.drop()
        # What an abort leaves, the bucket's rule for incomplete uploads removes; the first error
        # is the one that counts.
        with suppress(BotoCoreError, ClientError):
            upload.abort()
        raise
