"""The flow of one export: an archive in S3 becomes batch ZIPs in S3, and BIOSPEX is told.

Reads:      the archive at ``exportPath`` of the trigger message
Writes:     ``batch/{stem}-part{n}.zip`` in the same bucket, then one callback message
Triggered:  by ``flows/listen.py``, from the UI, by ``prefect deployment run`` or from Python
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, runtime, task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import wait
from prefect.logging import get_run_logger
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import Task, exponential_backoff

from blocks.saved import client, load_credentials, load_workspace, origin
from flows import summary
from flows.progress import Progress
from flows.splitter import archive, manifest, queues, storage, workspace
from flows.splitter.archive import Contents
from flows.splitter.batch_zip import BatchZip
from flows.splitter.errors import explain, is_transient
from flows.splitter.manifest import Batch, Partition
from flows.splitter.messages import Failure, ReplyAddress, Request, Result, title
from flows.splitter.settings import Settings
from flows.splitter.storage import Bucket, StoredObject

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

# Each batch uploads several parts at once, so a few fill the line; each takes memory.
TASK_RUNNER: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=2)


def can_pass(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether another attempt of a failed task makes sense; a bad archive stays bad."""
    return is_transient(state.result(raise_on_failure=False))


# S3 and the SQS client retry each request within seconds; these retries outlast a longer outage.
STEP: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(backoff_factor=5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": can_pass,
}


@task(task_run_name="download {request.file}", **STEP)
def download(bucket: Bucket, request: Request, source: StoredObject, directory: Path) -> Path:
    """Fetch the archive from S3 to the workspace, by parallel ranged requests."""
    path = directory / "archive"
    with Progress("Download", source.size) as progress:
        bucket.download(request.export_path, source, path, progress)
    return path


@task(task_run_name="extract", **STEP)
def extract(path: Path, directory: Path) -> Contents:
    """Unpack the archive, whatever its format, and verify the checksum of every member."""
    with Progress("Extract", path.stat().st_size) as progress:  # JPEGs are as large unpacked
        contents = archive.extract(path, directory / "images", progress)
    path.unlink()
    get_run_logger().info("%s with %d files, all intact", contents.format, len(contents.members))
    return contents


@task(task_run_name="partition into batches of {batch_size} rows", **STEP)
def partition(contents: Contents, image_column: str, batch_size: int) -> Partition:
    """Read the manifest, check that every row has its image, and cut it into batches."""
    return manifest.partition_export(contents.members, contents.read, image_column, batch_size)


@task(
    task_run_name="part {batch.part} of {of}, rows {batch.first_row}-{batch.last_row}",
    **STEP,
)
def zip_and_upload(
    batch: Batch,
    of: int,
    open_zip: Callable[[Batch], BatchZip],
    bucket: Bucket,
    request: Request,
    source: StoredObject,
    progress: Progress,
) -> int:
    """Write one batch ZIP straight into S3, unless it is there; returns its size in bytes."""
    key = request.batch_key(batch.part)
    with open_zip(batch) as content:
        uploaded = bucket.put_once(
            content, content.size, key, batch.metadata(source.etag), progress
        )
        what = "Uploaded" if uploaded else "Found in place from an earlier run:"
        get_run_logger().info("%s %s, %s bytes", what, key, f"{content.size:,}")
        return content.size


@task(task_run_name="notify: {message.status}", **STEP)
def notify(sqs: "SQSClient", address: ReplyAddress, message: Result | Failure) -> None:
    """Send the callback to BIOSPEX and show on the run page that it is out."""
    queues.send_callback(sqs, address, message)
    try:
        summary.publish_callback(message)
    except Exception:  # the callback is out; a failure here would send a second one
        get_run_logger().warning("The callback is sent but could not be noted", exc_info=True)


def run_name() -> str:
    return title(runtime.flow_run.parameters.get("request"))


@flow(
    name="create-batches",
    flow_run_name=run_name,
    task_runner=TASK_RUNNER,
    # A request that cannot be carried out is answered, so the flow checks it, not Prefect.
    validate_parameters=False,
)
def create_batches(request: Request) -> Result:
    """Split one export into batch ZIPs of BATCH_SIZE rows and tell BIOSPEX where they are.

    The archive is fetched, unpacked and checked as a whole before the first batch is uploaded.
    Batches that an earlier run has put in place are kept. The outcome goes to the request's
    `updatesQueueUrl`: every batch's file name, or one sentence that says why there are none.

    **To repeat a run**, press Retry: it uploads what is missing and sends the callback again.
    """
    credentials = load_credentials()
    sqs = client(credentials, "sqs", queues.CLIENT_CONFIG)
    try:
        request = Request.parse(request)
        bucket = Bucket(client(credentials, "s3", storage.CLIENT_CONFIG), request.s3_bucket)
        get_run_logger().info("AWS credentials come from the %s", origin(credentials))
        result = split(request, bucket)
    except Exception as error:
        sentence = explain(error)
        get_run_logger().error("No batches: %s", sentence)
        address = ReplyAddress.of(request)
        if address:
            notify(sqs, address, Failure(download_id=address.download_id, error=sentence))
        raise
    notify(sqs, request, result)
    return result


def split(request: Request, bucket: Bucket) -> Result:
    """The steps between a sound request and its result."""
    logger = get_run_logger()
    settings = Settings.load()
    block = load_workspace(settings)
    source = bucket.archive(request.export_path)
    odd = []
    if source.size != request.total_size:
        odd.append(f"The request says {request.total_size:,} bytes, S3 has {source.size:,}.")
        logger.warning(odd[-1])

    root = block.paths().root_for(source.size)
    logger.info("Workspace is %s, from the %s", root, origin(block))
    for directory in workspace.sweep(root):
        logger.info("Removed %s, left by a run that died", directory)
    with workspace.run_directory(root) as directory:
        path = download(bucket, request, source, directory)
        contents = extract(path, directory)
        parts = partition(contents, settings.image_column, settings.batch_size)
        sizes = upload(parts, contents, bucket, request, source)

    if parts.unlisted:
        some = ", ".join(parts.unlisted[:3])
        odd.append(f"{len(parts.unlisted)} files of the archive are in no row, such as {some}.")
        logger.warning(odd[-1])
    summary.publish(request, source, f"extract ({contents.format})", parts, sizes, odd)
    return Result(
        download_id=request.download_id,
        batch_files=[request.batch_file(batch.part) for batch in parts.batches],
    )


def upload(
    parts: Partition, contents: Contents, bucket: Bucket, request: Request, source: StoredObject
) -> list[int]:
    """Map ``zip_and_upload`` over the batches; returns the sizes of the ZIPs in bytes."""
    images = {name.removeprefix(parts.folder): member for name, member in contents.members.items()}
    total = sum(images[name].size for batch in parts.batches for name in batch.images)
    with Progress("Upload", total) as progress:
        futures = zip_and_upload.map(
            parts.batches,
            of=len(parts.batches),
            open_zip=unmapped(
                partial(
                    BatchZip,
                    images=images,
                    store=contents.store,
                    modified=contents.members[parts.manifest].modified,
                )
            ),
            bucket=unmapped(bucket),
            request=unmapped(request),
            source=unmapped(source),
            progress=unmapped(progress),
        )
        wait(futures)  # the images must stay until the last of them is read, even if one failed
        return futures.result()
