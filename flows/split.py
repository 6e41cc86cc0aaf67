"""The split of one export: lane, batches, and the outcome on the run page."""

import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from prefect import unmapped
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFutureList, wait
from prefect.logging import get_run_logger
from prefect.tasks import Task

from blocks.saved import Aws, load_workspace, origin
from flows.support import artifacts
from flows.support.progress import Progress, best_effort
from flows.support.task_runner import UploadPool, task_runner
from flows.tasks import download, extract, partition, read_index, splice, zip_and_upload
from splitter import workspace, zooniverse
from splitter.archives.extract import Contents
from splitter.archives.zip_index import ZipIndex
from splitter.aws import s3 as storage
from splitter.aws.s3 import Bucket
from splitter.batches import splice as splicing
from splitter.batches.assembly import Part
from splitter.batches.contact_sheet import MAX_IMAGE_BYTES, contact_sheet, spread
from splitter.batches.lanes import Export, Extract, Splice, choose_lane
from splitter.batches.outcome import Outcome
from splitter.batches.zip import BatchZip
from splitter.manifest.partition import Partition
from splitter.messages import Request
from splitter.sentences import Actor, Sentence
from splitter.settings import Settings

STALE_SIZE = Sentence(
    "request.stale-size", "The request says {said} bytes, S3 has {has}.", Actor.NOBODY
)
UNLISTED = Sentence(
    "manifest.unlisted-files",
    "{count} files are in the archive, but in no row of the manifest, such as {names}.",
)
UNLISTED_ONE = Sentence(
    "manifest.unlisted-file", "1 file is in the archive, but in no row of the manifest: {names}."
)


def bucket_named(name: str, aws: Aws | None = None) -> Bucket:
    """The bucket, by default with the credentials that this process finds."""
    return Bucket((aws or Aws()).client("s3", storage.CLIENT_CONFIG), name)


def split(request: Request, bucket: Bucket, earlier: Sequence[State[Any]]) -> Outcome:
    """Split the export.

    Args:
        earlier: the ends of earlier attempts, for the summary.
    """
    log = get_run_logger()
    began = time.monotonic()
    settings = Settings.load()
    source = bucket.archive(request.export_path)
    export = Export(request, source, settings.limits, bucket_named, bucket)
    drop_abandoned_uploads(export)
    warnings: list[object] = []
    if request.total_size not in (None, source.size):
        warnings.append(STALE_SIZE(said=request.total_size, has=source.size))

    chosen = choose_lane(export, settings, read_index, partial(partition, export))
    warnings += chosen.remarks
    lane = "splice" if isinstance(chosen, Splice) else "extract"
    log.info("Lane is %s: %s", lane, chosen.reason)
    if isinstance(chosen, Splice):
        parts, sizes = chosen.parts, split_in_s3(export, chosen, settings)
    else:
        parts, sizes = split_on_disk(export, chosen, settings)

    warnings += parts.warnings
    if parts.unlisted:
        sentence = UNLISTED_ONE if len(parts.unlisted) == 1 else UNLISTED
        warnings.append(sentence(count=len(parts.unlisted), names=parts.unlisted[:3]))
    outcome = Outcome(
        request=request,
        archive_size=source.size,
        lane=lane,
        reason=chosen.reason,
        parts=parts,
        sizes=sizes,
        warnings=warnings,
        zooniverse=zooniverse.section(parts),
        seconds=time.monotonic() - began,
    )
    for warning in outcome.all_warnings:
        log.warning("%s", warning)
    with best_effort("The summary", log):
        links = artifacts.batch_links(bucket, request, len(sizes), settings.presigned_links)
        artifacts.publish(outcome, links, earlier)
    return outcome


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


def split_in_s3(export: Export, lane: Splice, settings: Settings) -> list[int]:
    """The splice lane; returns the sizes of the batch ZIPs in bytes."""
    index, parts = lane.index, lane.parts
    images = {name: index.members[file] for name, file in parts.images.items()}
    modified = index.members[parts.manifest].info.date_time
    plans = splicing.parts(
        [splicing.plan_batch(batch, images, modified) for batch in parts.batches],
        export.bucket,
        export.request.export_path,
        export.source,
    )
    return put_batches(splice, export, parts, plans, index, verify=settings.verify)


def split_on_disk(export: Export, lane: Extract, settings: Settings) -> tuple[Partition, list[int]]:
    """The extract lane; returns the batches and the sizes of their ZIPs in bytes."""
    block = load_workspace(settings)
    root = block.paths().root_for(export.source.size, lane.unpacked)
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

        def read(name: str) -> bytes | None:
            return read_small(files, parts.images[name])

        sheet = contact_sheet(names, read)
        artifacts.publish_pictures(names, sheet)


def read_small(files: Contents | ZipIndex, name: str) -> bytes | None:
    """The bytes of an image; None if they are more than a thumbnail is worth."""
    if isinstance(files, Contents):
        size = files.members[name].size
    else:
        size = files.members[name].info.file_size
    return files.read(name) if size <= MAX_IMAGE_BYTES else None


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
