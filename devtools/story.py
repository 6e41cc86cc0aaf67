"""What the demonstration does, told while it happens: a line for each step, one block in the end.

What is told comes from Prefect's API, as the run page has it: the task runs, their durations, and
the lines that the flow has logged.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
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
    create_queues,
    embedded_aws,
    embedded_prefect,
    end_at_once,
    fetch,
    served,
    trigger,
)
from flows.support.run_tags import run_page, runs_page
from splitter.errors import SetupError
from splitter.settings import Settings
from splitter.wording import count, duration, size

SECONDS_BETWEEN_LOOKS = 0.3
SECONDS_FOR_LOGS = 5.0
"""For the last lines of a run, which come after its end."""

BATCHES_TOLD = 3
"""Of one export, a line each; the others are counted."""

BATCH_OF = re.compile(r"batch (?P<number>\d+) of (?P<all>\d+), rows (?P<rows>\S+)")
"""In a task's name."""


def tell(archives: Sequence[Path], home: Path, out: Path, keep: bool, verbose: bool) -> int:
    """Split the archives on services of our own and tell it; 0 if every one was split.

    Args:
        archives: if there are none, two examples are split in batches of 10 rows.
        home: a directory for all that the services write.
        out: gets ``batch/`` and the log.
        keep: leave the UI up until Ctrl-C.
        verbose: show the log as well.

    Raises:
        SetupError: a setting that cannot be used, a service that does not start.
    """
    settings = Settings.load()  # whose faults are to be said before anything is started
    rows = settings.batch_size if archives or os.environ.get("BATCH_SIZE") else 10
    log = out / "demo.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, soft_wrap=True)
    began = time.monotonic()
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        if verbose:
            stack.enter_context(_shown(log))
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
            "SPLICE_MIN_SIZE": "0",  # so that even a small ZIP shows the splice lane
            "TMPDIR": str(home),
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.2",  # a line is told when it happens
        }
        server = stack.enter_context(served(environment, output))
        with story.progress:
            while story.go_on(out / "batch"):
                if server.poll() is not None:
                    raise SetupError(f"The service has ended; {log} says why.")
                time.sleep(SECONDS_BETWEEN_LOOKS)
        story.end(out, began, keep)
        while keep and server.poll() is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        end_at_once(server)  # all is done, and what it has is thrown away
    return 1 if story.failed else 0


@dataclass
class Sent:
    """An export on its way.

    Attributes:
        began, over: ``time.monotonic()`` of the message and of the end, seconds.
        log: what its run has logged, in order.
        told: the task runs and lines that have been told.
        batches: how many have been put.
    """

    download: int
    archive: Path
    began: float
    run: UUID | None = None
    over: float | None = None
    log: list[Log] = field(default_factory=list)
    told: set[UUID] = field(default_factory=set)
    batches: int = 0


class Story:
    """The exports that were sent, what has been told of them, and what became of them."""

    def __init__(
        self, prefect: SyncPrefectClient, aws: Mapping[str, str], console: Console
    ) -> None:
        """``aws``: the environment that leads to it."""
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
        self._exports: list[Sent] = []
        self._waiting: list[Sent] = []
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
        """Put an archive into S3 and send the message that BIOSPEX would send."""
        sent = Sent(len(self._exports) + 1, archive, time.monotonic())
        self._s3.upload_file(str(archive), BUCKET, f"export/{archive.name}")
        body = json.dumps(trigger(sent.download, archive, self._updates))
        self._sqs.send_message(QueueUrl=self._triggers, MessageBody=body)
        self._exports.append(sent)
        self._waiting.append(sent)

    def go_on(self, directory: Path) -> bool:
        """Tell what is new, and fetch the batches of an export that is done.

        Exports run side by side and are told one after the other. False when all has been told.
        """
        answer = self._sqs.receive_message(QueueUrl=self._updates, MaxNumberOfMessages=10)
        for message in answer.get("Messages", ()):
            self._sqs.delete_message(QueueUrl=self._updates, ReceiptHandle=message["ReceiptHandle"])
            callback = json.loads(message["Body"])
            self._callbacks[callback["downloadId"]] = callback
        while self._waiting:
            sent = self._waiting[0]
            tag = FlowRunFilterTags(all_=[f"download-{sent.download}"])
            runs = self._prefect.read_flow_runs(flow_run_filter=FlowRunFilter(tags=tag))
            if not runs or not self._tell_steps(sent, runs[0]):
                return True
            self._tell_end(sent, self._callbacks[sent.download], directory)
            del self._waiting[0]
        return False

    def end(self, out: Path, began: float, keep: bool) -> None:
        """The last block: what was made, where it lies, what to try next."""
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
            lines.append("  run page   make demo KEEP=1 leaves the Prefect UI up to look at")
        lines += [
            '  next       make demo ARCHIVE="my own export.zip" BATCH_SIZE=500',
            "             make serve, on a queue of your own: docs/operations.md",
        ]
        self._console.print("\n" + "\n".join(lines))

    def _tell_steps(self, sent: Sent, run: FlowRun) -> bool:
        """The steps of a run that are done and have not been told; whether that was all."""
        if sent.run is None:
            sent.run = run.id
            self._console.print(
                f"\n[bold]{escape(sent.archive.name)}[/], {size(sent.archive.stat().st_size)}"
            )
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        tasks: list[TaskRun] = []
        while page := self._prefect.read_task_runs(flow_run_filter=of_run, offset=len(tasks)):
            tasks += page
        of_log = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        while lines := self._prefect.read_logs(
            of_log, offset=len(sent.log), sort=LogSort.TIMESTAMP_ASC
        ):
            sent.log += lines
        self._show_progress(of_run, tasks)

        over = bool(run.state and run.state.is_final() and sent.download in self._callbacks)
        if over and sent.over is None:
            sent.over = time.monotonic()
        late = sent.over is not None and time.monotonic() - sent.over > SECONDS_FOR_LOGS
        # What has ended is known of the tasks a little later than of their run.
        ends = [task.name for task in tasks if task.state and task.state.is_final()]
        if len(ends) < len(tasks) or not any(name.startswith("notify") for name in ends):
            over = over and late
        news = [
            (line.timestamp, line.id, f"  lane       {escape(line.message[len(LANE) :])}")
            for line in sent.log
            if line.id and line.message.startswith(LANE)
        ]
        for task in tasks:
            if task.state and task.state.is_completed() and task.end_time:
                own = [line.message for line in sent.log if line.task_run_id == task.id]
                said = [line for line in own if not line.startswith(FINISHED)]
                if len(said) == len(own) and not late:
                    over = False  # its lines are still on their way
                elif not task.name.startswith("notify"):
                    news.append((task.end_time, task.id, _step(task, said)))
        for _, key, line in sorted(news):
            if key not in sent.told:
                sent.told.add(key)
                is_batch = line.startswith("  batch ")
                sent.batches += is_batch
                if not is_batch or sent.batches <= BATCHES_TOLD:
                    self._console.print(line)
        return over

    def _tell_end(self, sent: Sent, callback: Mapping[str, Any], directory: Path) -> None:
        if sent.batches > BATCHES_TOLD:
            more = count(sent.batches - BATCHES_TOLD, "more batch", "more batches")
            self._console.print(f"             and {more}")
        for line in sent.log:
            if line.level == logging.WARNING and not line.task_run_id:
                self._console.print(f"  [yellow]note[/]       {escape(line.message)}")
        told = f"(BIOSPEX is told, {_since(sent.began)} in all)"
        if callback["status"] == "success":
            self._batches += callback["batchFiles"]
            self._bytes += fetch(self._s3, callback["batchFiles"], directory)
            self._console.print(f"  callback   [green]success[/] {told}")
            return
        self.failed += 1
        self._console.print(f"  callback   [red]failed[/] {told}: {escape(callback['error'])}")
        for line in sent.log:
            if line.message.startswith(ADVICE):
                self._console.print(f"  to do      {escape(line.message[len(ADVICE) :])}")

    def _show_progress(self, of_run: FlowRunFilter, tasks: Sequence[TaskRun]) -> None:
        """On a terminal, what is being done at the moment, and how much of it."""
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


LANE = "Lane is "
ADVICE = "What to do: "
FINISHED = "Finished in state"
"""How lines begin: of the flow, and of Prefect where a task has ended."""


def _step(task: TaskRun, said: Sequence[str]) -> str:
    """The line of a step: what it is, what it said last, and how long it took."""
    what = said[-1] if said else ""
    batch = BATCH_OF.search(task.name)
    if batch:
        name = f"batch {batch['number']}"
        done = what.partition(" to ")[0].removeprefix("Put ")
        what = f"of {batch['all']}, rows {batch['rows']}, {done}"
    else:
        name = "index" if task.name.startswith("read") else task.name.partition(" ")[0]
    took = duration(task.total_run_time.total_seconds())
    return escape(f"  {name:<10} {what} ({took})")


def _since(moment: float) -> str:
    return duration(time.monotonic() - moment)


@contextmanager
def _shown(log: Path) -> Iterator[None]:
    """Print a file while it grows."""
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
