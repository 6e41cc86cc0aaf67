"""The split of one export: its lane, its batches and the outcome."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from prefect import unmapped
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFutureList, wait
from prefect.logging import get_run_logger
from prefect.tasks import Task

from blocks.saved import load_workspace, origin
from flows.run_page import artifacts
from flows.run_page.pictures import Pictures
from flows.run_page.progress import Progress, best_effort
from flows.support.task_runner import task_runner
from flows.tasks import (
    download,
    extract,
    extract_zip,
    partition,
    read_index,
    splice,
    zip_and_upload,
)
from splitter import workspace, zooniverse
from splitter.archives import Contents, StoppedError, Watermark, ZipIndex
from splitter.batches import splice as splicing
from splitter.batches import zip as zipping
from splitter.batches.assembly import PARALLEL_UPLOADS, Part, PartPool
from splitter.batches.lanes import Export, Extract, Splice, choose_lane
from splitter.batches.outcome import Outcome
from splitter.manifest import Partition
from splitter.messages import Result
from splitter.sentences import Actor, Sentence
from splitter.settings import Settings

STALE_SIZE = Sentence(
    "request.stale-size",
    "The request says that the archive has {stated} bytes; in S3 it has {has}.",
    Actor.NOBODY,
)
UNLISTED = Sentence(
    "manifest.unlisted-files",
    "{count:file is|files are} in the archive, but in no row of the manifest and so in no batch, "
    "such as {names}.",
    Actor.MAKER,
    "If volunteers need these files, whoever made the export adds their rows to the manifest and "
    "exports again; else nothing has to be done.",
)


@dataclass(frozen=True)
class Made:
    """The batches of an export, as a lane made them.

    Attributes:
        sizes: bytes of each batch ZIP.
        states: the final states of the tasks that made them.
        pictures: thumbnails of the export, still being drawn.
    """

    parts: Partition
    sizes: Sequence[int]
    states: Sequence[State[Any]]
    pictures: Pictures


def split(export: Export, settings: Settings) -> tuple[Outcome, Made]:
    """Split an export into batches."""
    log = get_run_logger()
    began = time.monotonic()
    drop_abandoned_uploads(export)
    request, source = export.request, export.source
    warnings: list[object] = []
    if request.total_size not in (None, source.size):
        warnings.append(STALE_SIZE(stated=request.total_size, has=source.size))

    lane = choose_lane(export, settings, read_index, partition)
    log.info("Lane is %s: %s", lane.name, lane.reason.text)
    if isinstance(lane, Splice):
        made = split_in_s3(export, lane, settings)
    else:
        made = split_on_disk(export, lane, settings)

    parts = made.parts
    warnings += parts.warnings
    if parts.unlisted:
        warnings.append(UNLISTED(count=len(parts.unlisted), names=parts.unlisted[:3]))
    outcome = Outcome(
        request=request,
        archive_size=source.size,
        lane=lane.name,
        reason=lane.reason,
        parts=parts,
        sizes=made.sizes,
        warnings=warnings,
        zooniverse=zooniverse.section(parts),
        seconds=time.monotonic() - began,
    )
    for warning in outcome.all_warnings:
        log.warning("%s", warning)
    return outcome, made


def drop_abandoned_uploads(export: Export) -> None:
    """Abort the multipart uploads of batches that killed attempts left open.

    Only uploads that began before this run are aborted. If two runs of one export are alive, the
    later one aborts the open uploads of the earlier run, which then begins them again.
    """
    prefix = export.request.batch_key(1).removesuffix("1.zip")
    try:
        for key in export.bucket.abort_uploads(prefix):
            get_run_logger().info("Aborted an upload of %s that a dead run left open", key)
    except (BotoCoreError, ClientError) as error:  # the bucket's lifecycle rule removes them
        get_run_logger().warning("Uploads of dead runs could not be aborted: %s", error)


def split_in_s3(export: Export, lane: Splice, settings: Settings) -> Made:
    """Make the batches in the splice lane."""
    index, parts = lane.index, lane.parts
    plans = splicing.plan(parts, index)
    batches = splicing.parts(plans, export.bucket, export.request.export_path, export.source)
    return put_batches(splice, export, parts, batches, index, settings=unmapped(settings))


def split_on_disk(export: Export, lane: Extract, settings: Settings) -> Made:
    """Make the batches in the extract lane.

    The parts of a ZIP's batches are sent while it arrives, as its index and manifest can be read
    beforehand; batches appear when all of it has been checked. A tar must be unpacked first.
    """
    block = load_workspace(settings)
    root = block.root_for(export.source.size, lane.index.unpacked if lane.index else 0)
    get_run_logger().info("Workspace is %s, from the %s", root, origin(block))
    for directory in workspace.sweep(root):
        get_run_logger().info("Removed %s, left by a dead run", directory)
    # Other machines can only read an export that is unpacked on EFS.
    scheduler = settings.dask_scheduler if root == block.efs_path else None
    with workspace.run_directory(root) as directory:
        archive, store = directory / "archive", directory / "images"
        fill: Callable[[], None] | None = None
        if lane.index and lane.parts:
            # Parts without images are read from the store before the first file is unpacked.
            store.touch()
            parts, contents = lane.parts, Contents.expected(lane.index, store)
            fill = partial(fill_store, export, archive, lane.index, contents)
            if scheduler:  # its workers do not see how far the store is filled
                fill()
                fill = None
        else:
            download(export, archive, Watermark())
            contents = extract(archive, store, settings.limits)
            archive.unlink()
            parts = partition(contents, settings)
        plans = zipping.parts(parts, contents)
        return put_batches(zip_and_upload, export, parts, plans, contents, fill, scheduler)


def fill_store(export: Export, archive: Path, index: ZipIndex, contents: Contents) -> None:
    """Download a ZIP and unpack its files as they arrive; in the end its batches may appear."""
    archive.touch()
    with task_runner() as tasks, Watermark() as arrived:
        downloaded = tasks.submit(
            download, {"export": export, "archive": archive, "arrived": arrived}
        )
        downloaded.add_done_callback(lambda _: arrived.stop())
        with suppress(StoppedError):  # the download has failed
            extract_zip(archive, arrived, index, contents)
        downloaded.result()
        archive.unlink()
        contents.unpacked.finish()


def put_batches(
    put: Task[..., Any],
    export: Export,
    parts: Partition,
    plans: Sequence[Sequence[Part]],
    files: Contents | ZipIndex,
    fill: Callable[[], None] | None = None,
    scheduler: str | None = None,
    **options: Any,
) -> Made:
    """Map a task over the batches and their parts; look at the images at the same time.

    Args:
        fill: makes the files available, while parts that are ready are sent.
    """
    log = get_run_logger()
    Result.of(export.request, len(parts.batches))  # one message must be able to name them all
    total = sum(part.size for plan in plans for part in plan)
    with (
        Progress("Upload", total) as progress,
        part_pool(progress, files) as pool,
        task_runner(scheduler) as runner,
        # Before the runner waits for its tasks, an error has to end their waiting.
        files.unpacked if isinstance(files, Contents) else nullcontext(),
    ):
        futures: PrefectFutureList[Any] = runner.map(
            put,
            {
                "batch": parts.batches,
                "parts": plans,
                "of": len(parts.batches),
                "export": unmapped(export),
                "pool": unmapped(pool),
                **options,
            },
        )
        with best_effort("The plan", log):
            artifacts.publish_plan(export.request, parts)
        if fill:
            fill()
        pictures = Pictures(parts, files)
        with best_effort("The check for Zooniverse", log):
            parts = zooniverse.inspect(parts, files)
        wait(futures)  # even if one failed: the others still read the images
        sizes = list(futures.result())
        return Made(parts, sizes, [future.state for future in futures], pictures)


def part_pool(progress: Progress, files: Contents | ZipIndex) -> PartPool:
    """The threads that send the parts of batches of some files."""
    if isinstance(files, Contents):
        return PartPool(progress, PARALLEL_UPLOADS, files.unpacked.wait_for)
    return PartPool(progress)
