"""The flow of one export: an archive in S3 becomes batch ZIPs in S3, and BIOSPEX is told.

Reads:      the archive at ``exportPath`` of the trigger message
Writes:     ``batch/{stem}-part{n}.zip`` in the same bucket, then one callback message
Triggered:  by ``flows/listen.py``, from the UI, by ``prefect deployment run`` or from Python
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from logging import DEBUG, ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import BotoCoreError, ClientError
from prefect import flow, runtime, task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFutureList, wait
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.tasks import Task, exponential_backoff

from blocks.saved import Aws, load_workspace, origin
from flows.support import artifacts
from flows.support.callbacks import client_for
from flows.support.finding import documented, tag_this_run
from flows.support.log_context import label_lines
from flows.support.outage import waits_for_prefect
from flows.support.progress import Progress, best_effort
from flows.support.recovery import earlier_attempts, leave_if_superseded
from flows.support.task_runner import UploadPool, task_runner
from splitter import workspace, zooniverse
from splitter.archives import extract as archive
from splitter.archives.extract import Contents
from splitter.archives.members import Limits
from splitter.archives.zip_index import ZipIndex
from splitter.aws import s3 as storage
from splitter.aws import sqs as queues
from splitter.aws.s3 import Bucket
from splitter.aws.sqs import CallbackError
from splitter.batches import splice as splicing
from splitter.batches.assembly import Part, assemble
from splitter.batches.contact_sheet import contact_sheet, spread
from splitter.batches.lanes import Export, choose_lane
from splitter.batches.zip import BatchZip
from splitter.errors import ExportError, SetupError, explain, is_transient, judge
from splitter.manifest import partition as manifest
from splitter.manifest.partition import Batch, Partition
from splitter.messages import Failure, ReplyAddress, Request, Result, spelled_out, title
from splitter.settings import Allowed, Settings
from splitter.wording import count, size

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

label_lines()


def bucket_named(name: str, aws: Aws | None = None) -> Bucket:
    """The bucket, by default with the credentials that this process finds."""
    return Bucket((aws or Aws()).client("s3", storage.CLIENT_CONFIG), name)


def is_retryable(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether another attempt of a failed task makes sense; a bad archive stays bad."""
    return is_transient(state.result(raise_on_failure=False))


# The S3 and SQS clients repeat a request within seconds; these retries outlast a longer outage.
STEP: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(backoff_factor=5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_retryable,
}
ONE_BATCH = "batch {batch.part} of {of}, rows {batch.first_row}-{batch.last_row}"


@task(task_run_name="read the index of {export.request.file}", **STEP)
def read_index(export: Export) -> ZipIndex:
    """Read the ZIP's central directory from the archive's end: where each member stands."""
    index = export.index()
    get_run_logger().info("%s listed", count(len(index.members), "file"))
    return index


@task(task_run_name="download {export.request.file}", **STEP)
def download(export: Export, directory: Path) -> Path:
    """Fetch the archive from S3 to the workspace, by parallel ranged requests."""
    path = directory / "archive"
    with Progress("Download", export.source.size) as progress:
        export.bucket.download(export.request.export_path, export.source, path, progress)
    get_run_logger().info("%s received", size(export.source.size))
    return path


@task(task_run_name="extract", **STEP)
def extract(path: Path, directory: Path, limits: Limits) -> Contents:
    """Unpack the archive, whatever its format, and verify the checksum of every member."""
    with Progress("Extract", path.stat().st_size) as progress:  # JPEGs are as large unpacked
        contents = archive.extract(path, directory / "images", progress, limits)
    path.unlink()
    get_run_logger().info("%s, all intact", count(len(contents.members), "file"))
    return contents


@task(task_run_name="partition into batches of {settings.batch_size} rows", **STEP)
def partition(export: Export, files: Contents | ZipIndex, settings: Settings) -> Partition:
    """Read the manifest, check that every row has its image, and cut it into batches."""
    parts = manifest.partition_export(
        files.members,
        files.read,
        settings.image_column,
        settings.batch_size,
        settings.max_cells,
        files.unusable,
    )
    Result.of(export.request, len(parts.batches))  # which one message must be able to name
    rows = sum(batch.rows for batch in parts.batches)
    batches = count(len(parts.batches), "batch", "batches")
    get_run_logger().info("%s in %s", count(rows, "row"), batches)
    with best_effort("What Zooniverse would refuse", get_run_logger()):
        return zooniverse.inspect(parts, files)
    return parts


@task(task_run_name="zip and upload " + ONE_BATCH, **STEP)
def zip_and_upload(
    batch: Batch, parts: Sequence[Part], of: int, export: Export, uploads: UploadPool
) -> int:
    """Write one batch ZIP straight into S3, unless it is there; returns its size in bytes."""
    return put_batch(batch, parts, export, uploads)


@task(task_run_name="splice " + ONE_BATCH, **STEP)
def splice(
    batch: Batch,
    parts: Sequence[Part],
    of: int,
    export: Export,
    uploads: UploadPool,
    verify: bool,
) -> int:
    """Let S3 put one batch ZIP together from copied ranges of the archive, unless it is there.

    With VERIFY=true it is then read back, every checksum compared. Returns its size in bytes.
    """
    total = put_batch(batch, parts, export, uploads)
    if verify:
        key = export.request.batch_key(batch.part)
        splicing.verify(export.bucket, key, batch, export.limits)
        get_run_logger().info("Verified %s", key)
    return total


@task(task_run_name="notify: {message.status}", **STEP)
def notify(sqs: "SQSClient", address: ReplyAddress, message: Result | Failure) -> None:
    """Send the callback to BIOSPEX and show on the run page that it is out."""
    queues.send_callback(sqs, address, message)
    with best_effort("The callback, which is sent,", get_run_logger()):
        artifacts.publish_callback(message)


@dataclass(frozen=True)
class Outcome:
    """What a split made of an export.

    Attributes:
        rows: of all batches together.
        size: bytes of all batch ZIPs together.
        warnings: sentences about what a person may want to look at.
    """

    result: Result
    rows: int
    size: int
    warnings: Sequence[str]


def run_name() -> str:
    request = runtime.flow_run.parameters.get("request")
    return request if isinstance(request, str) else title(request)


@documented
@flow(
    name="create-batches",
    flow_run_name=run_name,
    # A request that cannot be carried out is answered, so the flow checks it, not Prefect.
    validate_parameters=False,
)
def create_batches(request: Request | str) -> Result:
    """Split one export into batch ZIPs of BATCH_SIZE rows and tell BIOSPEX where they are.

    A large ZIP is **spliced**: S3 itself copies the images' bytes into the batches. Any other
    archive is **extracted**: fetched, unpacked, checked as a whole, and zipped anew. Nothing is
    uploaded before the whole manifest has been checked, and batches that an earlier run has put in
    place are kept.

    The outcome goes to the request's `updatesQueueUrl`: every batch's file name, or, where the
    export or the installation is at fault, one sentence that says why there are none. Any other
    fault only ends the run: the listener tries it again, MAX_ATTEMPTS in all, before it answers.

    **To start one by hand**, give `s3://bucket/key` as the request: the answer then goes to
    UPDATES_QUEUE_URL. A trigger message always says everything itself.

    **To repeat a run**, press Retry: it uploads what is missing and sends the callback again.

    Called from Python it returns the `Result`, or raises the error that ended it.
    """
    log = get_run_logger()
    earlier: list[State[Any]] = []
    with best_effort("What earlier attempts ended in", log):
        earlier = earlier_attempts()
        for number, end in enumerate(earlier, 1):
            log.warning("Attempt %d ended %s: %s", number, end.name, end.message)
    outcome = None
    with waits_for_prefect():
        try:
            if isinstance(request, str):
                request = from_a_person(request)
            request = Request.parse(request)
            with best_effort("The tag of the download", log):
                tag_this_run(request)
            Allowed().check(request)
            aws = Aws()
            sqs = client_for(aws, request)
            queues.check_callback_queue(sqs, request)
            bucket = bucket_named(request.s3_bucket, aws)
            log.info("AWS credentials come from the %s", aws.origin)
            outcome = split(request, bucket, earlier)
            # Which waits for Prefect: a callback that is sent while Prefect is away could not be
            # noted, and would be sent once more.
            leave_if_superseded()
            notify(sqs, request, outcome.result)
        except Exception as error:
            return ended(failed(error, request, outcome, earlier))
    return ended(
        Completed(
            name="Completed with warnings" if outcome.warnings else "Completed",
            message=f"{count(outcome.rows, 'row')} in "
            f"{count(len(outcome.result.batch_files), 'batch', 'batches')}, {size(outcome.size)}",
            data=outcome.result,
        )
    )


def from_a_person(address: str) -> Any:
    """The request of a run that was started with an archive's address; no trigger comes here.

    Raises:
        RequestError: if it is no address.
        SetupError: if the answer has nowhere to go.
    """
    queue = Settings.load().updates_queue_url
    if not queue:
        raise SetupError("UPDATES_QUEUE_URL is not set; a run by hand needs a queue to answer to.")
    return spelled_out(address, queue)


def failed(
    error: Exception, request: Any, outcome: Outcome | None, earlier: Sequence[State[Any]]
) -> State[Any]:
    """Say why a run failed, to BIOSPEX if that stays so; returns the state that it ends in.

    Args:
        outcome: the batches, where only BIOSPEX could not be told of them.
        earlier: how earlier attempts ended, for the summary.
    """
    log = get_run_logger()
    sentence = explain(error)
    stays = isinstance(error, ExportError | SetupError)
    begin = "No batches:" if stays else "No batches yet:"
    if outcome:
        begin = "Batches are made, but"
    log.error("%s %s", begin, sentence)
    log.error("What to do: %s", judge(error).advice)
    log.log(DEBUG if stays else ERROR, "The traceback:", exc_info=error)
    with best_effort("The summary", log):
        artifacts.publish_failure(
            begin,
            sentence,
            judge(error).advice,
            earlier,
            is_made=outcome is not None,
            is_tried_again=not stays,
        )
    address = Allowed().reply_address(request)
    if address and stays and not outcome and not isinstance(error, CallbackError):
        try:
            failure = Failure(download_id=address.download_id, error=sentence)
            leave_if_superseded()
            notify(client_for(Aws(), address), address, failure)
        except Exception as unsent:
            log.error("BIOSPEX could not be told: %s", explain(unsent))
    return Failed(message=f"{begin} {sentence}" if outcome else sentence, data=error)


def ended(state: State[Any]) -> Result:
    """A state as a flow returns it: who calls the flow is given what is in it, or it is raised."""
    return cast(Result, state)


def split(request: Request, bucket: Bucket, earlier: Sequence[State[Any]]) -> Outcome:
    """What lies between a sound request and its outcome.

    Args:
        earlier: how earlier attempts ended, for the summary.
    """
    began = time.monotonic()
    settings = Settings.load()
    source = bucket.archive(request.export_path)
    export = Export(request, source, settings.limits, bucket_named, bucket)
    drop_abandoned_uploads(export)
    warnings: list[str] = []
    if request.total_size not in (None, source.size):
        warnings.append(f"The request says {request.total_size:,} bytes, S3 has {source.size:,}.")

    chosen = choose_lane(export, settings, read_index, partial(partition, export))
    index, parts = chosen.index, chosen.parts
    warnings += chosen.remarks
    lane = f"{'splice' if index else 'extract'}: {chosen.reason}"
    get_run_logger().info("Lane is %s", lane)
    if index and parts:
        sizes = split_in_s3(export, index, parts, settings)
    else:
        parts, sizes = split_on_disk(export, settings)

    warnings += parts.warnings
    if parts.unlisted:
        some = ", ".join(name[:80] for name in parts.unlisted[:3])
        unlisted = count(len(parts.unlisted), "file is", "files are")
        warnings.append(
            f"{unlisted} in the archive, but in no row of the manifest, such as {some}."
        )
    for warning in [*warnings, *parts.zooniverse]:
        get_run_logger().warning(warning)
    with best_effort("The summary", get_run_logger()):
        keys = [request.batch_key(batch.part) for batch in parts.batches]
        artifacts.publish(
            request,
            source,
            lane,
            parts,
            sizes,
            warnings,
            zooniverse.section(parts),
            artifacts.batch_links(bucket, keys, settings.presigned_links),
            time.monotonic() - began,
            earlier,
        )
    return Outcome(
        result=Result.of(request, len(parts.batches)),
        rows=sum(batch.rows for batch in parts.batches),
        size=sum(sizes),
        warnings=[*warnings, *parts.zooniverse],
    )


def drop_abandoned_uploads(export: Export) -> None:
    """Drop what earlier attempts at the batches had in S3 when their processes were killed.

    Only uploads that were begun before this run are dropped. So of two runs that live, the later
    one takes from the earlier at most once what that has under way, and that begins it again.
    """
    prefix = export.request.batch_key(1).removesuffix("1.zip")
    try:
        for key in export.bucket.abort_uploads(prefix):
            get_run_logger().info("Dropped an upload of %s, left by a run that died", key)
    except (BotoCoreError, ClientError) as error:  # the bucket's rule removes them some day
        get_run_logger().warning("Uploads of runs that died could not be dropped: %s", error)


def split_in_s3(export: Export, index: ZipIndex, parts: Partition, settings: Settings) -> list[int]:
    """The splice lane; returns the sizes of the batch ZIPs in bytes."""
    images = {name: index.members[file] for name, file in parts.images.items()}
    modified = index.members[parts.manifest].info.date_time
    plans = splicing.parts(
        [splicing.plan_batch(batch, images, modified) for batch in parts.batches],
        export.bucket,
        export.request.export_path,
        export.source,
    )
    return put_batches(splice, export, parts, plans, index, verify=settings.verify)


def split_on_disk(export: Export, settings: Settings) -> tuple[Partition, list[int]]:
    """The extract lane; returns the batches and the sizes of their ZIPs in bytes."""
    block = load_workspace(settings)
    root = block.paths().root_for(export.source.size)
    get_run_logger().info("Workspace is %s, from the %s", root, origin(block))
    for directory in workspace.sweep(root):
        get_run_logger().info("Removed %s, left by a run that died", directory)
    with workspace.run_directory(root) as directory:
        path = download(export, directory)
        contents = extract(path, directory, export.limits)
        parts = partition(export, contents, settings)
        parts.warnings.extend(contents.remarks)
        images = {name: contents.members[file] for name, file in parts.images.items()}
        modified = contents.members[parts.manifest].modified
        plans = [
            BatchZip(batch, images, contents.store, modified).parts() for batch in parts.batches
        ]
        # Only what is unpacked on EFS can be read by other machines.
        scheduler = settings.dask_scheduler if root == block.efs_path else None
        return parts, put_batches(zip_and_upload, export, parts, plans, contents, scheduler)


def show_images(parts: Partition, files: Contents | ZipIndex) -> None:
    """Put a few of the export's images on the run page, where they can be read."""
    with best_effort("The images", get_run_logger()):
        names = spread([image for batch in parts.batches for image in batch.images])
        sheet = contact_sheet(names, lambda name: files.read(parts.images[name]))
        artifacts.publish_pictures(names, sheet)


def put_batches(
    put: Task[..., Any],
    export: Export,
    parts: Partition,
    plans: Sequence[Sequence[Part]],
    files: Contents | ZipIndex,
    scheduler: str | None = None,
    **options: Any,
) -> list[int]:
    """Map a task over the batches and their parts; returns the sizes of the ZIPs in bytes.

    Meanwhile a few of the images are shown.
    """
    total = sum(part.size for plan in plans for part in plan)
    with (
        Progress("Upload", total) as progress,
        closing(UploadPool(progress)) as uploads,
        task_runner(scheduler) as runner,
    ):
        futures: PrefectFutureList[Any] = runner.map(
            put,
            {
                "batch": parts.batches,
                "parts": plans,
                "of": len(parts.batches),
                "export": unmapped(export),
                "uploads": unmapped(uploads),
                **options,
            },
        )
        show_images(parts, files)
        wait(futures)  # the images must stay until the last of them is read, even if one failed
        return list(futures.result())


def put_batch(batch: Batch, parts: Sequence[Part], export: Export, uploads: UploadPool) -> int:
    """What the two lanes' last steps have in common; returns the ZIP's size in bytes."""
    key = export.request.batch_key(batch.part)
    total = sum(part.size for part in parts)
    metadata = batch.metadata(export.source.etag)
    if assemble(export.bucket, key, parts, metadata, uploads.pool, uploads.progress):
        get_run_logger().info("Put %s to %s", size(total), key)
    else:
        get_run_logger().info("Found %s, from an earlier run, to be whole", key)
    return total
