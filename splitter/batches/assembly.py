"""Assembles an object in S3 from parts: copied from another object, or sent by this machine."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from queue import PriorityQueue
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from splitter.aws import Bucket
from splitter.aws.s3 import MultipartUpload
from splitter.errors import Kind, is_kind

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

T = TypeVar("T")

PARALLEL_PARTS = 8
"""Threads that send parts with bytes of several places of an archive. They bound the memory: each
holds two copies of its part, and others are being filled."""

PARALLEL_UPLOADS = 14
"""Threads that send parts from disk, each with one part in memory; as many as a download has."""

PARALLEL_COPIES = 64
"""Copies at a time. They take no memory and no bandwidth of this machine. S3 copies about 85 MB a
second in each, so the requests stay far below the limit of 3,500 a second for a prefix:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html"""

PARALLEL_BATCHES = 16
"""Objects that are assembled at a time. Their parts wait for the threads in shared queues."""


class AssemblyError(Exception):
    """The object in S3 differs from its parts."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that this machine sends.

    Attributes:
        size: bytes.
        content: returns the bytes when it is the part's turn.
        position: of its last byte in the archive or store; waiting parts are sent in this order.
        expect: called when the part begins to wait.
        drop: called if the part is not sent.
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
    """A part that S3 copies: the bytes from ``start`` up to ``end`` of another object."""

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
    """Threads that send parts, and many more that wait for copies.

    Copies start in the order in which they are submitted. Parts are sent in the order of the
    archive, then of submission, so that batches whose images are spread over an archive read it
    together, from front to end.

    In another process, a pickled pool is that process's own pool, without progress.

    Attributes:
        progress: called with the number of bytes in place since the last call, by any thread.
        may_appear: called before an object appears; it can wait, or refuse by raising an error.
        timeout: the error of a batch whose requests timed out; no further batch begins.
    """

    def __init__(
        self,
        progress: Callable[[int], object] = lambda _: None,
        senders: int = PARALLEL_PARTS,
        may_appear: Callable[[], object] = _nothing,
    ) -> None:
        """``senders``: threads that send parts."""
        self.progress = progress
        self.may_appear = may_appear
        self.timeout: Exception | None = None
        self._senders = ThreadPoolExecutor(senders)
        self._copiers = ThreadPoolExecutor(PARALLEL_COPIES)
        self._waiting: PriorityQueue[tuple[int, int, Callable[[], None]]] = PriorityQueue()
        self._numbers = count()

    def __enter__(self) -> "PartPool":
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until all submitted work is done."""
        self._copiers.shutdown()
        self._senders.shutdown()

    def __reduce__(self) -> Any:
        return _pool_of_this_process, ()

    def submit(self, part: Part, work: Callable[[], T]) -> "Future[T]":
        """Run ``work`` in a thread when it is the part's turn."""
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

    def _run_first(self) -> None:
        _, _, run = self._waiting.get_nowait()
        run()


@cache
def _pool_of_this_process() -> PartPool:
    return PartPool()


def assemble(
    bucket: Bucket,
    key: str,
    parts: Sequence[Part],
    metadata: Mapping[str, str],
    pool: PartPool,
) -> bool:
    """Assemble a ZIP in S3, unless an object of that size and metadata exists.

    The object appears whole or not at all: S3 shows a multipart upload only when it is complete. A
    single part that is sent is a plain put.

    Args:
        parts: in order; all but the last have at least S3's smallest part size.
        pool: handles the parts of any number of objects.

    Returns:
        False if the object existed.

    Raises:
        ObjectError: if the object that parts are copied from has been replaced.
        AssemblyError: if the object has another size than its parts together; it is removed.
    """
    size = sum(part.size for part in parts)
    if bucket.holds(key, size, metadata):
        pool.progress(size)
        return False
    match parts:
        case [SentPart() as only]:
            pool.may_appear()
            try:
                content = pool.submit(only, only.content).result()
            except BaseException:
                only.drop()
                raise
            bucket.put(key, content, metadata)
            pool.progress(size)
        case _:
            try:
                _upload(bucket.begin_upload(key, metadata), parts, pool)
            except ClientError as error:
                # An upload that is gone may be complete, if the response to that was lost.
                gone = is_kind(error, Kind.UPLOAD_GONE)
                if not (gone and bucket.holds(key, size, metadata)):
                    raise
    found = bucket.find(key)
    if not found or found.size != size:
        bucket.delete(key)
        actual = found.size if found else 0
        raise AssemblyError(f"{key} has {actual:,} bytes instead of {size:,}.")
    return True


def _upload(upload: MultipartUpload, parts: Sequence[Part], pool: PartPool) -> None:
    """Put the parts in place and complete the upload; abort it if that fails."""

    def send(number: int, part: Part) -> "CompletedPartTypeDef":
        sent = part.send(upload, number)
        pool.progress(part.size)
        return sent

    futures = [
        pool.submit(part, partial(send, number, part)) for number, part in enumerate(parts, 1)
    ]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
        sent = [future.result() for future in futures]
        pool.may_appear()
        upload.complete(sent)
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)  # S3 may keep a part that arrives after the abort
        for part in parts:
            part.drop()
        # If the abort fails too, the bucket's rule for incomplete uploads removes the parts. The
        # first error is the one to raise.
        with suppress(BotoCoreError, ClientError):
            upload.abort()
        raise
