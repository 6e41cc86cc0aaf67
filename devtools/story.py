"""Runs the demo and prints each step and a summary, from Prefect's task runs and logs."""

import fcntl
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from uuid import UUID

import boto3
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterTags,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, Log, TaskRun
from prefect.client.schemas.sorting import ArtifactSort, LogSort
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from devtools.services import (
    BUCKET,
    FIXTURES,
    REGION,
    DemoError,
    create_queues,
    embedded_aws,
    embedded_prefect,
    end_at_once,
    fetch,
    served,
    trigger,
)
from flows.create_batches import ADVICE_LINE
from flows.split import LANE_LINE
from flows.support.run_tags import run_page, runs_page
from flows.tasks import notify, splice, zip_and_upload
from splitter.settings import Settings
from splitter.wording import count, duration, size

SECONDS_BETWEEN_LOOKS = 0.3
SECONDS_FOR_LOGS = 5.0
"""Wait for a run's last log lines, which arrive after its end."""

BATCHES_SHOWN = 3
"""Batches of an export with their own line."""

ROOM_LEFT = 50 * 1024**2
"""Free bytes of TMPDIR below which the demo stops, because Prefect's database would hang."""

BATCH_TASKS = (splice.task_key, zip_and_upload.task_key)


def tell(archives: Sequence[Path], home: Path, out: Path, keep: bool, verbose: bool) -> int:
    """Split the archives with embedded services and print the steps; 0 if every one was split.

    Args:
        archives: if empty, two examples are split into batches of 10 rows.
        home: the directory for the files of the services.
        out: the directory for ``batch/`` and the log.
        keep: keep the UI running until Ctrl-C.
        verbose: also print the log.

    Raises:
        DemoError: if a service does not start, another demo uses ``out`` or a disk is full.
        SetupError: if a setting is invalid.
    """
    settings = Settings.load()
    rows = settings.batch_size if archives or os.environ.get("BATCH_SIZE") else 10
    log = out / "demo.log"
    console = Console(highlight=False, soft_wrap=True)
    began = time.monotonic()
    with ExitStack() as stack:
        output = stack.enter_context(_locked(log))
        if verbose:
            stack.enter_context(_printed(log))
        with console.status("Starting S3, SQS and a Prefect server …"):
            aws = stack.enter_context(embedded_aws())
            prefect_api = stack.enter_context(embedded_prefect(home))
        here = {
            PREFECT_API_URL: prefect_api["PREFECT_API_URL"],
            PREFECT_UI_URL: prefect_api["PREFECT_UI_URL"],
        }
        stack.enter_context(temporary_settings(here))
        client = stack.enter_context(get_client(sync_client=True))
        console.print(f"S3, SQS and Prefect run on this machine ({_since(began)}).")
        story = Story(client, aws, console)
        for archive in archives or sorted(FIXTURES.glob("4[13]-*")):
            story.send(archive)
        environment = {
            **aws,
            **prefect_api,
            **story.queues,
            "BATCH_SIZE": str(rows),
            "BIOSPEX_ENVIRONMENT": "loc",
            "SPLICE_MIN_SIZE": "0",  # splice small ZIPs too
            "TMPDIR": str(home),
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.2",
        }
        server = stack.enter_context(served(environment, output))
        with story.progress:
            while story.go_on(out / "batch"):
                if server.poll() is not None:
                    raise DemoError(f"The service has ended; {log} says why.")
                check_room(home)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        story.end(out, began, keep)
        while keep and server.poll() is None:
            check_room(home)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        end_at_once(server)  # its data is not needed
    return 1 if story.failed else 0


def check_room(home: Path, needed: int = ROOM_LEFT) -> None:
    """Raise ``DemoError`` if fewer than ``needed`` bytes are free."""
    free = shutil.disk_usage(home).free
    if free < needed:
        raise DemoError(
            f"{home} has only {size(free)} free, {size(needed)} are needed; set TMPDIR to a folder "
            "with more room."
        )


@contextmanager
def _locked(log: Path) -> Iterator[IO[bytes]]:
    """The empty, locked log; raises ``DemoError`` if another demo has locked it."""
    with log.open("ab") as output:
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(
                f"Another demo writes to {log}; wait for its end, or name another folder: "
                "make demo OUT=FOLDER"
            ) from None
        output.truncate(0)
        yield output


@dataclass
class Export:
    """An export that was sent.

    Attributes:
        began, over: ``time.monotonic()`` of the trigger and of the end.
        log: the log lines of its run.
        printed: task runs and log lines that were printed.
        batches: number of finished batches.
    """

    download: int
    archive: Path
    began: float
    run: UUID | None = None
    over: float | None = None
    log: list[Log] = field(default_factory=list)
    printed: set[UUID] = field(default_factory=set)
    batches: int = 0


class Story:
    """The exports that were sent, and their output."""

    def __init__(
        self, prefect: SyncPrefectClient, aws: Mapping[str, str], console: Console
    ) -> None:
        """``aws``: the environment variables of the embedded AWS."""
        session = boto3.Session(
            aws["AWS_ACCESS_KEY_ID"], aws["AWS_SECRET_ACCESS_KEY"], region_name=REGION
        )
        self._s3 = session.client("s3", endpoint_url=aws["AWS_ENDPOINT_URL"])
        self._sqs = session.client("sqs", endpoint_url=aws["AWS_ENDPOINT_URL"])
        self._triggers, self._updates = create_queues(self._sqs, "loc")
        self._s3.create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        self.queues = {
            "TRIGGER_QUEUE_URL": self._triggers,
            "UPDATES_QUEUE_URL": self._updates,
            "ALLOWED_QUEUES": self._updates,
            "ALLOWED_BUCKETS": BUCKET,
        }
        self._prefect = prefect
        self._console = console
        self._exports: list[Export] = []
        self._waiting: list[Export] = []
        self._callbacks: dict[int, dict[str, Any]] = {}
        self._batches: list[str] = []
        self._bytes = 0
        self.failed = 0
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self.progress.add_task("waiting for the listener", total=100)

    def send(self, archive: Path) -> None:
        """Upload an archive to S3 and send BIOSPEX's trigger."""
        export = Export(len(self._exports) + 1, archive, time.monotonic())
        self._s3.upload_file(str(archive), BUCKET, f"export/{archive.name}")
        body = json.dumps(trigger(export.download, archive, self._updates))
        self._sqs.send_message(QueueUrl=self._triggers, MessageBody=body)
        self._exports.append(export)
        self._waiting.append(export)

    def go_on(self, directory: Path) -> bool:
        """Print new steps and download finished batches; False when all exports are printed.

        Exports run in parallel and are printed one after another.
        """
        answer = self._sqs.receive_message(QueueUrl=self._updates, MaxNumberOfMessages=10)
        for message in answer.get("Messages", ()):
            self._sqs.delete_message(QueueUrl=self._updates, ReceiptHandle=message["ReceiptHandle"])
            callback = json.loads(message["Body"])
            self._callbacks[callback["downloadId"]] = callback
        while self._waiting:
            export = self._waiting[0]
            tag = FlowRunFilterTags(all_=[f"download-{export.download}"])
            runs = self._prefect.read_flow_runs(flow_run_filter=FlowRunFilter(tags=tag))
            if not runs or not self._print_steps(export, runs[0]):
                return True
            self._print_end(export, self._callbacks[export.download], directory)
            del self._waiting[0]
        return False

    def end(self, out: Path, began: float, keep: bool) -> None:
        """Print the summary: batches, folder and commands to try next."""
        lines = []
        if self._batches:
            lines += [
                f"[bold green]Done[/] in {_since(began)}: "
                f"{count(len(self._exports) - self.failed, 'archive')} in "
                f"{count(len(self._batches), 'batch', 'batches')}, {size(self._bytes)}",
                f"  batches    {out / 'batch'}",
                f'  try        unzip -l "{out / "batch" / self._batches[0]}"',
            ]
        if self.failed:
            lines.append(f"[bold red]{count(self.failed, 'archive')} could not be split[/]")
        lines.append(f"  full log   {out / 'demo.log'}")
        if keep:
            one = self._exports[0].run if len(self._exports) == 1 else None
            page = run_page(one) if one else runs_page("export")
            lines.append(f"  run page   {page}  until you press Ctrl-C")
        else:
            lines.append("  run page   make demo KEEP=1 keeps the Prefect UI open")
        lines += [
            '  next       make demo ARCHIVE="my own export.zip" BATCH_SIZE=500',
            "             make serve, with your own queue: docs/operations.md",
        ]
        self._console.print("\n" + "\n".join(lines))

    def _print_steps(self, export: Export, run: FlowRun) -> bool:
        """Print newly finished steps of a run; returns whether the run is printed completely."""
        if export.run is None:
            export.run = run.id
            self._console.print(
                f"\n[bold]{escape(export.archive.name)}[/], {size(export.archive.stat().st_size)}"
            )
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        tasks: list[TaskRun] = []
        while page := self._prefect.read_task_runs(flow_run_filter=of_run, offset=len(tasks)):
            tasks += page
        of_log = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        while lines := self._prefect.read_logs(
            of_log, offset=len(export.log), sort=LogSort.TIMESTAMP_ASC
        ):
            export.log += lines
        self._show_progress(of_run, tasks)

        over = bool(run.state and run.state.is_final() and export.download in self._callbacks)
        if over and export.over is None:
            export.over = time.monotonic()
        late = export.over is not None and time.monotonic() - export.over > SECONDS_FOR_LOGS
        # Prefect may record the end of a task after the end of its run.
        ended = [task for task in tasks if task.state and task.state.is_final()]
        if len(ended) < len(tasks) or notify.task_key not in {task.task_key for task in ended}:
            over = over and late
        news = [
            (line.timestamp, line.id, f"  {line.message}")
            for line in export.log
            if line.id and line.message.startswith(LANE_LINE.partition("%")[0])
        ]
        for task in ended:
            if not task.state or not task.state.is_completed() or not task.end_time:
                continue
            line = self._line(export, task)
            if line is None:
                over = over and late  # wait for its log lines
            elif task.task_key != notify.task_key:
                news.append((task.end_time, task.id, line))
                export.batches += task.task_key in BATCH_TASKS and task.id not in export.printed
                if task.task_key in BATCH_TASKS and export.batches > BATCHES_SHOWN:
                    export.printed.add(task.id)
        for _, key, line in sorted(news):
            if key not in export.printed:
                export.printed.add(key)
                self._console.print(escape(line))
        return over

    def _line(self, export: Export, task: TaskRun) -> str | None:
        """Name, result and duration of a finished step; None if its log has not arrived."""
        took = duration(task.total_run_time.total_seconds())
        if task.task_key in (*BATCH_TASKS, notify.task_key):
            return f"  {task.name} ({took})"
        own = [line.message for line in export.log if line.task_run_id == task.id]
        # The last line is Prefect's.
        return f"  {task.name}: {own[-2]} ({took})" if len(own) > 1 else None

    def _print_end(self, export: Export, callback: Mapping[str, Any], directory: Path) -> None:
        if export.batches > BATCHES_SHOWN:
            more = count(export.batches - BATCHES_SHOWN, "more batch", "more batches")
            self._console.print(f"  and {more}")
        for line in export.log:
            if line.level == logging.WARNING and not line.task_run_id:
                self._console.print(f"  [yellow]warning[/]    {escape(line.message)}")
        took = f"({_since(export.began)} in all)"
        if callback["status"] == "success":
            self._batches += callback["batchFiles"]
            self._bytes += fetch(self._s3, callback["batchFiles"], directory)
            self._console.print(f"  callback   [green]success[/] {took}")
            return
        self.failed += 1
        self._console.print(f"  callback   [red]failed[/] {took}: {escape(callback['error'])}")
        for line in export.log:
            if line.message.startswith(ADVICE_LINE.partition("%")[0]):
                self._console.print(f"  {escape(line.message)}")

    def _show_progress(self, of_run: FlowRunFilter, tasks: Sequence[TaskRun]) -> None:
        if not self._console.is_terminal:
            return
        running = [task.name for task in tasks if task.state and task.state.is_running()]
        shown = self._prefect.read_artifacts(
            flow_run_filter=of_run,
            artifact_filter=ArtifactFilter(type=ArtifactFilterType(any_=["progress"])),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
        percent = float(str(shown[0].data)) if shown and shown[0].data else 0.0
        doing = escape(running[0][:50]) if running else "between two steps"
        self.progress.update(self._bar, description=doing, completed=percent)


def _since(moment: float) -> str:
    return duration(time.monotonic() - moment)


@contextmanager
def _printed(log: Path) -> Iterator[None]:
    """Print the log while it grows."""
    over = threading.Event()

    def follow() -> None:
        with log.open(errors="replace") as lines:
            while True:
                last = over.is_set()
                print(lines.read(), end="", flush=True)
                if last:
                    return
                over.wait(0.2)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
