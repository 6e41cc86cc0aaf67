"""Everything on one machine: embedded AWS, embedded Prefect, both flows, your archives.

``python -m cli.demo [ARCHIVE …] [--batch-size N] [--out DIR]`` puts the archives into S3 (moto's
server), sends the trigger messages that BIOSPEX would send, lets ``flows.serve`` do its work and
fetches the batch ZIPs to DIR/batch.
"""

import argparse
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any, Final

import boto3

from splitter.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

REGION: Final = "us-east-2"
BUCKET = "biospex-loc"
FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit status is 0 if every archive was split."""
    options = _options(arguments)
    archives = options.archives or sorted(FIXTURES.glob("4[13]-*"))
    batch_size = options.batch_size or (Settings().batch_size if options.archives else 10)
    for path in archives:
        if not path.is_file():
            sys.exit(f"There is no archive {path}.")
    with (
        TemporaryDirectory(prefix="biospex-demo-") as home,
        embedded_aws() as aws,
        embedded_prefect(Path(home)) as prefect,
    ):
        print(f"Prefect UI, as long as this command runs: {prefect['PREFECT_UI_URL']}", flush=True)
        session = boto3.Session(
            aws["AWS_ACCESS_KEY_ID"], aws["AWS_SECRET_ACCESS_KEY"], region_name=REGION
        )
        s3 = session.client("s3", endpoint_url=aws["AWS_ENDPOINT_URL"])
        sqs = session.client("sqs", endpoint_url=aws["AWS_ENDPOINT_URL"])
        triggers, updates = create_queues(sqs, "loc")
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        for download_id, path in enumerate(archives, 1):
            s3.upload_file(str(path), BUCKET, f"export/{path.name}")
            sqs.send_message(
                QueueUrl=triggers,
                MessageBody=json.dumps(trigger(download_id, path, updates)),
            )
            print(f"Sent the trigger for {path.name} as download {download_id}", flush=True)
        environment = {
            **os.environ,
            **aws,
            **prefect,
            "TRIGGER_QUEUE_URL": triggers,
            "ALLOWED_BUCKETS": BUCKET,
            "ALLOWED_QUEUES": updates,
            "BATCH_SIZE": str(batch_size),
            "SPLICE_MIN_SIZE": "0",  # so that even a small ZIP shows the splice lane
        }
        failed = 0
        with served(environment) as server:
            for callback in callbacks(sqs, updates, len(archives), server):
                print(f"\nCallback: {json.dumps(callback)}", flush=True)
                failed += callback["status"] != "success"
                fetch(s3, callback.get("batchFiles", []), options.out / "batch")
            wait_until_empty(sqs, triggers)
    if failed:
        print(f"{failed} of {len(archives)} archives could not be split.", file=sys.stderr)
    return 1 if failed else 0


@contextmanager
def embedded_aws() -> Iterator[dict[str, str]]:
    """moto's server on a free port; yields the environment that leads boto3 to it."""
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
def embedded_prefect(home: Path) -> Iterator[dict[str, str]]:
    """A Prefect server with its data in ``home``; yields the environment that leads to it."""
    url = f"http://127.0.0.1:{free_port()}"
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_UI_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    log = home / "server.log"
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", url.rpartition(":")[2]]
    with log.open("wb") as output, child(command, environment, output) as server:
        _wait_until_healthy(f"{url}/api/health", server, log)
        yield environment


@contextmanager
def served(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m flows.serve`` as a process of its own, its log on our standard output."""
    with child([sys.executable, "-m", "flows.serve"], environment, None) as server:
        yield server


@contextmanager
def child(
    command: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block: asked first, then made to."""
    process = subprocess.Popen(  # noqa: S603, our own commands
        command,
        env={**os.environ, **environment},
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def create_queues(sqs: "SQSClient", prefix: str) -> tuple[str, str]:
    """The trigger queue, with a dead-letter queue, and the callback queue; returns their URLs."""
    dead = sqs.create_queue(QueueName=f"{prefix}-batch-trigger-dead")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])
    redrive = {"deadLetterTargetArn": arn["Attributes"]["QueueArn"], "maxReceiveCount": "10"}
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


def callbacks(
    sqs: "SQSClient", queue_url: str, count: int, server: subprocess.Popen[bytes]
) -> Iterator[dict[str, Any]]:
    """The first ``count`` messages of the callback queue, as they come in."""
    while count:
        if server.poll() is not None:
            sys.exit(f"flows.serve ended with status {server.returncode}; its log says why.")
        answer = sqs.receive_message(QueueUrl=queue_url, WaitTimeSeconds=1)
        for message in answer.get("Messages", ()):
            sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])
            yield json.loads(message["Body"])
            count -= 1


def wait_until_empty(sqs: "SQSClient", queue_url: str) -> None:
    """Wait until the listener has deleted every message: until every run has ended."""
    while any(
        int(count)
        for count in sqs.get_queue_attributes(
            QueueUrl=queue_url,
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
            ],
        )["Attributes"].values()
    ):
        time.sleep(0.5)


def fetch(s3: "S3Client", files: Sequence[str], directory: Path) -> None:
    """Download batch ZIPs to ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in files:
        # In one request: moto reads an object as a whole for every range of it.
        body = s3.get_object(Bucket=BUCKET, Key=f"batch/{file}")["Body"]
        with (directory / file).open("wb") as output:
            shutil.copyfileobj(body, output)
        print(f"  {directory / file}  {(directory / file).stat().st_size:,} bytes", flush=True)


def free_port() -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310, our own http URL
                return
        except OSError:
            time.sleep(0.2)
    sys.exit(f"The Prefect server did not start:\n{log.read_text()[-2000:]}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cli.demo", description=__doc__)
    parser.add_argument("archives", nargs="*", type=Path, metavar="ARCHIVE")
    parser.add_argument(
        "--batch-size", type=int, help="rows of a batch (2000, or 10 for the small fixtures)"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="where batches go (./out)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
