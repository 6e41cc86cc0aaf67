"""The tasks of one export: each names a step, has its retries, and calls one plain function.

Retries, from the inside out: botocore sends a request up to 5 times within seconds; a ranged read
resumes a broken response up to 5 times; a task is retried 4 times within minutes, which outlasts a
longer outage, unless S3 did not answer at all; the listener starts a run MAX_ATTEMPTS times.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Cancelled
from prefect.tasks import Task, exponential_backoff

from flows.run_page import artifacts
from flows.run_page.progress import Progress, best_effort
from flows.support.outage import waits_for_prefect
from splitter.archives import Contents, Limits, StoppedError, Watermark, ZipIndex
from splitter.archives import extract as archives
from splitter.aws import CallbackQueue
from splitter.batches import lanes
from splitter.batches import splice as splicing
from splitter.batches.assembly import Part, PartPool, assemble
from splitter.batches.lanes import Export
from splitter.errors import is_timeout, is_transient
from splitter.manifest import Batch, Partition
from splitter.messages import Failure, Result
from splitter.settings import Settings
from splitter.wording import count, size


def is_retryable(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether another attempt of a failed task can succeed; a bad archive stays bad.

    Requests that time out have taken minutes by then. The run ends, so that an S3 that does not
    answer does not hold up the exports behind it for an hour; the listener tries it again.
    """
    error = state.result(raise_on_failure=False)
    return is_transient(error) and not is_timeout(error)


STEP: dict[str, Any] = {
    "cache_policy": NO_CACHE,  # the result of one export is never used for another
    "persist_result": False,  # a result may have gigabytes, or a client
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(backoff_factor=5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_retryable,
}
ONE_BATCH = "batch {batch.part} of {of}, rows {batch.first_row}-{batch.last_row}"


@task(task_run_name="read the index", **STEP)
def read_index(export: Export, settings: Settings) -> ZipIndex:
    """Read the ZIP's central directory, which gives the place of each member."""
    index = lanes.index_of(export, settings)
    get_run_logger().info("%s listed", count(len(index.members), "file"))
    return index


@task(task_run_name="download the archive", **STEP)
def download(export: Export, archive: Path, arrived: Watermark) -> None:
    """Download the archive from S3 to the workspace, with parallel ranged requests."""
    key = export.request.export_path
    try:
        with Progress("Download", export.source.size) as progress:
            export.bucket.download(key, export.source, archive, progress, arrived.advance)
    except StoppedError:
        return Cancelled(message="The archive is not needed")  # type: ignore[return-value]
    get_run_logger().info("%s received", size(export.source.size))
    return None


@task(task_run_name="extract", **STEP)
def extract(archive: Path, store: Path, limits: Limits) -> Contents:
    """Unpack a tar, and verify the checksums that it has."""
    with Progress("Extract", archive.stat().st_size) as progress:  # JPEGs are as large unpacked
        contents = archives.extract(archive, store, progress, limits)
    get_run_logger().info("%s, all intact", count(len(contents.members), "file"))
    return contents


@task(task_run_name="extract", **STEP)
def extract_zip(archive: Path, arrived: Watermark, index: ZipIndex, contents: Contents) -> None:
    """Unpack a ZIP while it arrives, and verify the checksum of every member."""
    with Progress("Extract", index.unpacked) as progress:
        archives.extract_zip(archive, index, contents, progress, arrived)
    get_run_logger().info("%s, all intact", count(len(contents.members), "file"))


@task(task_run_name="partition into batches of {settings.batch_size} rows", **STEP)
def partition(files: Contents | ZipIndex, settings: Settings) -> Partition:
    """Read the manifest, check that every row has its image, and divide it into batches."""
    parts = lanes.partition(files, settings)
    rows = sum(batch.rows for batch in parts.batches)
    batches = count(len(parts.batches), "batch", "batches")
    get_run_logger().info("%s in %s", count(rows, "row"), batches)
    return parts


@task(task_run_name="zip and upload " + ONE_BATCH, **STEP)
def zip_and_upload(
    batch: Batch, parts: Sequence[Part], of: int, export: Export, pool: PartPool
) -> int:
    """Write one batch ZIP straight into S3, unless it exists; returns its size in bytes."""
    return _put_batch(batch, parts, export, pool)


@task(task_run_name="splice " + ONE_BATCH, **STEP)
def splice(
    batch: Batch,
    parts: Sequence[Part],
    of: int,
    export: Export,
    pool: PartPool,
    settings: Settings,
) -> int:
    """Let S3 assemble one batch ZIP from ranges of the archive, unless it exists.

    With VERIFY=true, reads it back and compares every checksum. Returns its size in bytes.
    """
    total = _put_batch(batch, parts, export, pool)
    if settings.verify:
        key = export.request.batch_key(batch.part)
        splicing.verify(export.bucket, key, batch, settings.limits)
        get_run_logger().info("Verified %s", key)
    return total


@task(task_run_name="notify: {message.status}", **STEP)
def notify(callbacks: CallbackQueue, message: Result | Failure) -> None:
    """Send the callback to BIOSPEX and record it on the run page."""
    callbacks.send(message)
    try:
        # At once: if this process dies first, the next attempt sends the callback again.
        with waits_for_prefect(0):
            artifacts.publish_callback(message)
    except Exception:
        with best_effort("The callback, which was sent,", get_run_logger()):
            artifacts.publish_callback(message)


def _put_batch(batch: Batch, parts: Sequence[Part], export: Export, pool: PartPool) -> int:
    key = export.request.batch_key(batch.part)
    total = sum(part.size for part in parts)
    metadata = batch.metadata(export.source.etag)
    if pool.timeout:
        raise pool.timeout
    try:
        is_new = assemble(export.bucket, key, parts, metadata, pool)
    except StoppedError:
        return Cancelled(message="The archive was not unpacked")  # type: ignore[return-value]
    except Exception as error:
        if is_timeout(error):
            pool.timeout = error
        raise
    if is_new:
        get_run_logger().info("Put %s to %s", size(total), key)
    else:
        get_run_logger().info("%s already exists and is complete", key)
    return total
