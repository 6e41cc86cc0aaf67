"""Runs the demo and prints the log of each export, its callback and a summary."""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import IO, Any

import boto3
from boto3.s3.transfer import TransferConfig
from rich.console import Console
from rich.markup import escape

from devtools.services import (
    BUCKET,
    FIXTURES,
    REGION,
    DemoError,
    create_queues,
    embedded_aws,
    embedded_prefect,
    end_at_once,
    served,
    trigger,
)
from splitter.settings import Settings
from splitter.wording import count, duration, size

SECONDS_BETWEEN_LOOKS = 0.3

ROOM = 200 * 1024**2
"""Free bytes for the embedded services, with a margin."""
COPIES = 4
"""Copies of an archive on disk: in S3, downloaded, unpacked, and its batches in S3."""
ROOM_LEFT = 50 * 1024**2
"""Free bytes of TMPDIR below which the demo stops, because Prefect's database would hang."""

IN_ONE_REQUEST = TransferConfig(multipart_threshold=2**60)
"""Moto reads the whole object for every range."""

BEGIN = "%(asctime)s | %(levelname)s | %(flow_run_name)s | "
LOG_FORMAT = {
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": f"{BEGIN}%(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": f"{BEGIN}%(task_run_name)s: %(message)s",
}
LINE = re.compile(r"(\S+) \| (\w+) \| download (\d+): .*? \| (.*)")
"""A line about an export in a log of that format."""

SKIPPED = (
    "Beginning flow run ",
    "View at ",
    "Finished in state ",
    "AWS credentials come from ",
    "Workspace is ",
)
"""Log lines that are not printed."""


def tell(archives: Sequence[Path], out: Path, keep: bool) -> int:
    """Split the archives with embedded services and print the steps; 0 if every one was split.

    Args:
        archives: if empty, two examples are split into batches of 10 rows.
        out: the directory for ``batch/`` and the log.
        keep: keep the UI running until Ctrl-C.

    Raises:
        DemoError: if a service does not start, another demo uses ``out`` or a disk is full.
        SetupError: if a setting is invalid.
    """
    Settings.load()
    needed = ROOM + COPIES * sum(archive.stat().st_size for archive in archives)
    check_room(Path(gettempdir()), needed)
    rows = {} if archives or os.environ.get("BATCH_SIZE") else {"BATCH_SIZE": "10"}
    log = out / "demo.log"
    console = Console(highlight=False, soft_wrap=True)
    began = time.monotonic()
    with ExitStack() as stack:
        output = stack.enter_context(_locked(log))
        directory = TemporaryDirectory(prefix="biospex-demo-", ignore_cleanup_errors=True)
        home = Path(stack.enter_context(directory))
        with console.status("Starting S3, SQS and a Prefect server …"):
            aws = stack.enter_context(embedded_aws())
            prefect_api = stack.enter_context(embedded_prefect(home))
        console.print(f"S3, SQS and Prefect run on this machine ({_since(began)}).")
        story = Story(aws, stack.enter_context(log.open(errors="replace")), console)
        for archive in archives or sorted(FIXTURES.glob("4[13]-*")):
            story.send(archive)
        environment = {
            **aws,
            **prefect_api,
            **story.queues,
            **rows,
            **LOG_FORMAT,
            "BIOSPEX_ENVIRONMENT": "loc",
            "SPLICE_MIN_SIZE": "0",  # splice small ZIPs too
            "TMPDIR": str(home),
        }
        server = stack.enter_context(served(environment, output))
        with console.status("Splitting …"):
            while story.go_on(out / "batch"):
                if server.poll() is not None:
                    raise DemoError(f"The service has ended; {log} says why.")
                check_room(home)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        story.end(out, began, prefect_api["PREFECT_UI_URL"] if keep else "")
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
        lines: lines about it that were not printed yet.
        callback: BIOSPEX's answer, once it has arrived.
    """

    download: int
    lines: list[str] = field(default_factory=list)
    callback: Mapping[str, Any] | None = None


class Story:
    """The exports that were sent, and their output."""

    def __init__(self, aws: Mapping[str, str], log: IO[str], console: Console) -> None:
        """``aws``: the environment variables of the embedded AWS. ``log``: of ``flows.serve``."""
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
        self._log, self._rest = log, ""
        self._console = console
        self._exports: list[Export] = []
        self._printed = 0
        self._batches: list[str] = []
        self._bytes = 0
        self.failed = 0

    def send(self, archive: Path) -> None:
        """Upload an archive to S3 and send BIOSPEX's trigger."""
        export = Export(len(self._exports) + 1)
        self._s3.upload_file(str(archive), BUCKET, f"export/{archive.name}")
        body = json.dumps(trigger(export.download, archive, self._updates))
        self._sqs.send_message(QueueUrl=self._triggers, MessageBody=body)
        export.lines.append(f"\n[bold]{escape(archive.name)}[/], {size(archive.stat().st_size)}")
        self._exports.append(export)

    def go_on(self, directory: Path) -> bool:
        """Print what is new and download finished batches; False when all exports are printed.

        Exports run in parallel and are printed one after another.
        """
        # An export's last log lines may arrive a moment after its callback, so a callback is
        # printed at the next look.
        answered = [export for export in self._exports if export.callback]
        self._receive()
        self._read_log()
        for export in self._exports[self._printed :]:
            for line in export.lines:
                self._console.print(line)
            export.lines.clear()
            if export not in answered:
                return True
            self._print_callback(export.callback or {}, directory)
            self._printed += 1
        return False

    def end(self, out: Path, began: float, ui: str) -> None:
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
        page = f"{ui} until you press Ctrl-C" if ui else "make demo KEEP=1 keeps its UI open"
        lines += [
            f"  full log   {out / 'demo.log'}",
            f"  Prefect    {page}",
            '  next       make demo ARCHIVE="my own export.zip" BATCH_SIZE=500',
        ]
        self._console.print("\n" + "\n".join(lines))

    def _receive(self) -> None:
        answer = self._sqs.receive_message(QueueUrl=self._updates, MaxNumberOfMessages=10)
        for message in answer.get("Messages", ()):
            self._sqs.delete_message(QueueUrl=self._updates, ReceiptHandle=message["ReceiptHandle"])
            callback = json.loads(message["Body"])
            self._exports[callback["downloadId"] - 1].callback = callback

    def _read_log(self) -> None:
        *lines, self._rest = (self._rest + self._log.read()).split("\n")
        for line in lines:
            found = LINE.fullmatch(line)
            if found and not any(text in line for text in SKIPPED):
                at, level, download, text = found.groups()
                shown = escape(text) if level == "INFO" else f"[yellow]{escape(text)}[/]"
                self._exports[int(download) - 1].lines.append(f"  {at}  {shown}")

    def _print_callback(self, callback: Mapping[str, Any], directory: Path) -> None:
        if callback["status"] == "success":
            self._batches += callback["batchFiles"]
            for file in callback["batchFiles"]:
                key, path = f"batch/{file}", directory / file
                self._s3.download_file(BUCKET, key, str(path), Config=IN_ONE_REQUEST)
                self._bytes += path.stat().st_size
            self._console.print("  callback  [green]success[/]")
        else:
            self.failed += 1
            self._console.print("  callback  [red]failed[/]")


def _since(moment: float) -> str:
    return duration(time.monotonic() - moment)
