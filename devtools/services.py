"""Runs AWS and Prefect on this machine, for the demo and the tests.

AWS is moto's server in this process. The Prefect server and ``flows.serve`` are processes that end
with their ``with`` blocks.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import psutil

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

REGION: Final = "us-east-2"
BUCKET = "biospex-loc"
FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"


class DemoError(Exception):
    """The demo or an embedded service cannot run. The message is for the terminal."""


SECONDS_TO_START = 120
SECONDS_TO_END = 60
"""Between SIGTERM and SIGKILL."""


@contextmanager
def embedded_aws() -> Iterator[dict[str, str]]:
    """Run moto's server on a free port; yields boto3's environment variables."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line for each request
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
    """Run a Prefect server; yields its clients' environment variables.

    Args:
        home: the directory of its log and, without ``database``, its data.
        port: a free one by default.
        database: URL of a PostgreSQL database.

    Raises:
        DemoError: if it does not start.
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
        wait_until_healthy(f"{url}/api", server, log)
        yield environment


def served(
    environment: Mapping[str, str], output: IO[bytes] | None = None
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Run ``python -m flows.serve`` with its log in ``output``, by default stderr."""
    return child([sys.executable, "-m", "flows.serve"], environment, output)


@contextmanager
def child(
    command: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process; the end of the block ends it and its children.

    It has its own process group, so that Ctrl-C in a terminal does not reach it.
    """
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=True,
    )
    try:
        yield process
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=SECONDS_TO_END)
    finally:  # at once after Ctrl-C
        end_at_once(process)


def end_at_once(process: subprocess.Popen[bytes]) -> None:
    """Kill a child, its descendants and its process group."""
    with suppress(psutil.Error):  # Prefect starts the process of a run in a group of its own
        for descendant in psutil.Process(process.pid).children(recursive=True):
            descendant.kill()
    with suppress(ProcessLookupError, PermissionError):  # PermissionError: a dead group on macOS
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def create_queues(sqs: "SQSClient", prefix: str, max_receive_count: int = 1000) -> tuple[str, str]:
    """Create a trigger queue with a dead-letter queue and a callback queue; returns both URLs."""
    dead = sqs.create_queue(QueueName=f"{prefix}-batch-trigger-dead")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])
    redrive = {
        "deadLetterTargetArn": arn["Attributes"]["QueueArn"],
        "maxReceiveCount": str(max_receive_count),
    }
    triggers = sqs.create_queue(
        QueueName=f"{prefix}-batch-trigger", Attributes={"RedrivePolicy": json.dumps(redrive)}
    )
    updates = sqs.create_queue(QueueName=f"{prefix}-batch-update")
    return triggers["QueueUrl"], updates["QueueUrl"]


def trigger(download_id: int, archive: Path, updates_queue_url: str) -> dict[str, Any]:
    """BIOSPEX's trigger for an archive."""
    return {
        "downloadId": download_id,
        "file": archive.name,
        "exportPath": f"export/{archive.name}",
        "totalSize": archive.stat().st_size,
        "s3Bucket": BUCKET,
        "updatesQueueUrl": updates_queue_url,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(api: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the health route of Prefect's API; raises ``DemoError`` with the end of the log."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{api}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise DemoError(f"{api} does not answer:\n{log.read_text()[-2000:]}")
