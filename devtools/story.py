"""Runs the demo and prints the log of each export, its callback and a summary."""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
LINE = r"^(\S+) \| (\w+) \| download {}: .*? \| (.*)\n"
"""A line about an export in a log of that format."""

SKIPPED = re.compile(
    "Beginning flow run |View at |Finished in state |AWS credentials come from |Workspace is "
)
"""Log lines that are not printed."""


def tell(archives: Sequence[Path], out: Path, keep: bool) -> int:
    """Split the archives with embedded services and print the steps; 0 if every one was split.

    Args:
        archives: if empty, two examples are split into batches of 10 rows.
        out: the directory for ``batch/`` and the log.
        keep: keep the UI running until Ctrl-C.

    Raises:
        DemoError: if a service does not start, ``out`` cannot be used or a disk is full.
        SetupError: if a setting is invalid.
    """
    console = Console(highlight=False, soft_wrap=True)
    began = time.monotonic()
    with ExitStack() as stack:
        output = stack.enter_context(_locked_log(out))
        Settings.load()
        check_room(Path(gettempdir()), ROOM + COPIES * sum(one.stat().st_size for one in archives))
        directory = TemporaryDirectory(prefix="biospex-demo-", ignore_cleanup_errors=True)
        home = Path(stack.enter_context(directory))
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]  # of an account or a store that is not the demo's
        with console.status("Starting S3, SQS and a Prefect server …"):
            os.environ |= stack.enter_context(embedded_aws())
            os.environ |= stack.enter_context(embedded_prefect(home)) | LOG_FORMAT
        console.print(f"S3, SQS and Prefect run on this machine ({_since(began)}).")
        if not archives:
            os.environ["BATCH_SIZE"] = os.environ.get("BATCH_SIZE") or "10"
        story = Story(archives or sorted(FIXTURES.glob("4[13]-*")), out, console)
        environment = {
            **story.queues,
            "ALLOWED_BUCKETS": BUCKET,
            "BIOSPEX_ENVIRONMENT": "loc",
            "SPLICE_MIN_SIZE": "0",  # splice small ZIPs too
            "TMPDIR": str(home),
        }
        server = stack.enter_context(served(environment, output))

        def wait() -> None:
            if server.poll() is not None:
                raise DemoError(f"The service has ended; {story.log} says why.")
            check_room(home)
            time.sleep(SECONDS_BETWEEN_LOOKS)

        with console.status("Splitting …"):
            story.follow(wait)
        story.end(began, os.environ["PREFECT_UI_URL"] if keep else "")
        while keep:
            wait()
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


def _locked_log(out: Path) -> IO[bytes]:
    """The empty log, which another demo in the same folder cannot lock too."""
    try:
        (out / "batch").mkdir(parents=True, exist_ok=True)
        log = (out / "demo.log").open("ab")
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        log.truncate(0)
    except BlockingIOError:
        problem = f"Another demo writes to {log.name}; wait for its end, or"
    except OSError as error:
        problem = f"{out} cannot be written to ({error.strerror});"
    else:
        return log
    raise DemoError(f"{problem} name another folder: make demo OUT=FOLDER")


class Story:
    """The exports, which run at the same time and are printed one after another.

    Attributes:
        queues: the settings with the queues' URLs.
        failed: the number of archives that could not be split.
    """

    def __init__(self, archives: Sequence[Path], out: Path, console: Console) -> None:
        """Uploads the archives to S3 and sends BIOSPEX's triggers."""
        self._s3, self._sqs = boto3.client("s3"), boto3.client("sqs")
        triggers, self._updates = create_queues(self._sqs, "loc")
        self._s3.create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        for number, archive in enumerate(archives, 1):
            self._s3.upload_file(str(archive), BUCKET, f"export/{archive.name}")
            body = json.dumps(trigger(number, archive, self._updates))
            self._sqs.send_message(QueueUrl=triggers, MessageBody=body)
        self.queues = {
            "TRIGGER_QUEUE_URL": triggers,
            "UPDATES_QUEUE_URL": self._updates,
            "ALLOWED_QUEUES": self._updates,
        }
        self._archives, self._out, self._console = archives, out, console
        self.log = out / "demo.log"
        self._callbacks: dict[int, dict[str, Any]] = {}
        self._batches: list[Path] = []
        self.failed = 0

    def follow(self, wait: Callable[[], None]) -> None:
        """Print the log lines and the callback of each export, and download its batches."""
        for number, archive in enumerate(self._archives, 1):
            self._console.print(
                f"\n[bold]{escape(archive.name)}[/], {size(archive.stat().st_size)}"
            )
            printed, callback = 0, None
            while not callback:
                wait()
                # The last lines may arrive a moment after the callback.
                callback = self._callbacks.get(number)
                self._receive()
                printed += self._print_log(number, printed)
            if callback["status"] == "success":
                for file in callback["batchFiles"]:
                    path = self._out / "batch" / file
                    key = f"batch/{file}"
                    self._s3.download_file(BUCKET, key, str(path), Config=IN_ONE_REQUEST)
                    self._batches.append(path)
                self._console.print("  callback  [green]success[/]")
            else:
                self.failed += 1
                self._console.print("  callback  [red]failed[/]")

    def end(self, began: float, ui: str) -> None:
        """Print the summary: batches, folder and commands to try next."""
        lines = []
        if self._batches:
            lines += [
                f"[bold green]Done[/] in {_since(began)}: "
                f"{count(len(self._archives) - self.failed, 'archive')} in "
                f"{count(len(self._batches), 'batch', 'batches')}, "
                f"{size(sum(batch.stat().st_size for batch in self._batches))}",
                f"  batches    {escape(str(self._out / 'batch'))}",
                f'  try        unzip -l "{escape(str(self._batches[0]))}"',
            ]
        if self.failed:
            lines.append(f"[bold red]{count(self.failed, 'archive')} could not be split[/]")
        page = f"{ui} until you press Ctrl-C" if ui else "make demo KEEP=1 keeps its UI open"
        lines += [
            f"  full log   {escape(str(self.log))}",
            f"  Prefect    {page}",
            '  next       make demo ARCHIVE="my own export.zip" BATCH_SIZE=500',
        ]
        self._console.print("\n" + "\n".join(lines))

    def _receive(self) -> None:
        answer = self._sqs.receive_message(QueueUrl=self._updates, MaxNumberOfMessages=10)
        for message in answer.get("Messages", ()):
            self._sqs.delete_message(QueueUrl=self._updates, ReceiptHandle=message["ReceiptHandle"])
            callback = json.loads(message["Body"])
            self._callbacks[callback["downloadId"]] = callback

    def _print_log(self, number: int, printed: int) -> int:
        """Print an export's lines after the first ``printed`` ones; returns how many."""
        log = self.log.read_text(errors="replace")
        lines = re.findall(LINE.format(number), log, re.MULTILINE)
        new = [line for line in lines if not SKIPPED.search(line[2])][printed:]
        for at, level, text in new:
            shown = escape(text) if level == "INFO" else f"[yellow]{escape(text)}[/]"
            self._console.print(f"  {at}  {shown}")
        return len(new)


def _since(moment: float) -> str:
    return duration(time.monotonic() - moment)
