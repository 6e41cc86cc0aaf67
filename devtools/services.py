"""AWS and Prefect on this machine, for the demonstration and for the tests.

AWS is moto's server in this process; the Prefect server, and ``flows.serve`` which does the work,
are processes of their own that end with the block that started them.
"""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

REGION: Final = "us-east-2"
BUCKET = "biospex-loc"
FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"


class DemoError(Exception):
    """The demo or an embedded service cannot run; its message is for the terminal."""


SECONDS_TO_START = 120
SECONDS_TO_END = 60
"""After SIGTERM, before SIGKILL."""


@contextmanager
def embedded_aws() -> Iterator[dict[str, str]]:
    """moto's server on a free port; yields the environment variables that point boto3 to it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_DEFAULT_REGION": REGION,
        }
    finally:
        server.stop()


@contextmanager
def embedded_prefect(
    home: Path, port: int | None = None, database: str | None = None
) -> Iterator[dict[str, str]]:
    """A Prefect server; yields the environment variables that point to it.

    Args:
        home: the directory of its log, and of its data unless there is a database.
        port: its TCP port; by default a free one.
        database: URL of a PostgreSQL database.

    Raises:
        DemoError: with the end of its log, if it does not start.
    """
    url = f"http://127.0.0.1:{port or free_port()}"
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_UI_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    log = home / "server.log"
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", url.rpartition(":")[2]]
    settings = dict(environment)
    if database:
        settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database
    with log.open("ab") as output, child(command, settings, output) as server:
        _wait_until_healthy(f"{url}/api/health", server, log)
        yield environment


@contextmanager
def served(
    environment: Mapping[str, str], output: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ``python -m flows.serve``; its log goes to ``output``, by default to stderr."""
    with child([sys.executable, "-m", "flows.serve"], environment, output) as server:
        yield server


@contextmanager
def child(
    command: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block, together with its own children.

    It has its own process group, so that a terminal's Ctrl-C reaches this process alone.
    """
    process = None
    try:
        with uninterrupted():
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
            )
        yield process
    except KeyboardInterrupt:  # do not make the user wait
        with uninterrupted():
            if process:
                end_at_once(process)
        raise
    finally:
        with uninterrupted():
            if process:
                _end(process)


def end_at_once(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and its process group."""
    with suppress(ProcessLookupError, PermissionError):  # the latter: macOS, of a dead group
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    handlers = {
        each: signal.signal(each, lambda number, _: waiting.append(number))
        for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for number in waiting[:1]:
            signal.raise_signal(number)


def create_queues(sqs: "SQSClient", prefix: str) -> tuple[str, str]:
    """Create a trigger queue with a dead-letter queue, and a callback queue; returns their URLs."""
    dead = sqs.create_queue(QueueName=f"{prefix}-batch-trigger-dead")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])
    redrive = {"deadLetterTargetArn": arn["Attributes"]["QueueArn"], "maxReceiveCount": "1000"}
    triggers = sqs.create_queue(
        QueueName=f"{prefix}-batch-trigger", Attributes={"RedrivePolicy": json.dumps(redrive)}
    )
    updates = sqs.create_queue(QueueName=f"{prefix}-batch-update")
    return triggers["QueueUrl"], updates["QueueUrl"]


def trigger(download_id: int, archive: Path, updates_queue_url: str) -> dict[str, Any]:
    """The message that BIOSPEX sends for an archive."""
    return {
        "downloadId": download_id,
        "file": archive.name,
        "exportPath": f"export/{archive.name}",
        "totalSize": archive.stat().st_size,
        "s3Bucket": BUCKET,
        "updatesQueueUrl": updates_queue_url,
    }


def fetch(s3: "S3Client", files: Sequence[str], directory: Path) -> int:
    """Download batch ZIPs to ``directory``; returns their bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in files:
        # In one request: moto reads an object as a whole for every range of it.
        body = s3.get_object(Bucket=BUCKET, Key=f"batch/{file}")["Body"]
        with (directory / file).open("wb") as output:
            shutil.copyfileobj(body, output)
    return sum((directory / file).stat().st_size for file in files)


def free_port() -> int:
    """A TCP port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=SECONDS_TO_END)
    end_at_once(process)


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise DemoError(f"The Prefect server did not start:\n{log.read_text()[-2000:]}")
