"""Sends many triggers at once and measures the listener's memory: ``python -m bench.crowd``.

One in ten of the ``--triggers`` messages is of each of these kinds:

- one of two messages with the same download, which get a callback each;
- a message that SQS delivers again while its run is active, which gets one callback;
- an invalid request, which gets a failure callback;
- junk without an address for a callback, which becomes a dead letter.

The others are small exports. AWS is moto's; ``flows.serve`` and the Prefect server on PostgreSQL
are real. Reads the resident memory (VmRSS) of the listener and of flows.serve every five seconds.
Exits with 1 if a message got a wrong number of callbacks or is in a wrong queue.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import linear_regression, median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName

from devtools.database import postgresql
from devtools.processes import process_of
from devtools.services import (
    BUCKET,
    FIXTURES,
    REGION,
    child,
    create_queues,
    embedded_aws,
    embedded_prefect,
    trigger,
)

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

MAX_RECEIVE_COUNT = 4
"""Enough for a message that the bench receives once and the listener twice."""

SETTINGS = {
    "BATCH_SIZE": "10",
    "SPLICE_MIN_SIZE": "0",
    "VISIBILITY_TIMEOUT": "30",
    "ALLOWED_BUCKETS": BUCKET,
    "ALLOWED_QUEUES": "http://127.0.0.1:*/*/*-batch-update",
    "PREFECT_LOGGING_LEVEL": "WARNING",
}
SECONDS_BETWEEN_LOOKS = 5.0
WARM_UP = 0.1
"""Share of the callbacks before memory is counted."""


@dataclass
class Crowd:
    """Messages to send and the expected results.

    Attributes:
        bodies: messages that are delivered once.
        repeated: messages that are delivered again while they are in flight.
        answers: expected number of callbacks for each download id and status.
        junk: number of ``bodies`` that become dead letters.
    """

    bodies: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    junk: int = 0

    @property
    def size(self) -> int:
        return len(self.bodies) + len(self.repeated)


@dataclass
class Sample:
    """Seconds since the start, callbacks received, and MiB of resident memory by process."""

    second: float
    answered: int
    memory: dict[str, float]


def make_crowd(size: int, archives: Sequence[Path], updates: str) -> Crowd:
    crowd = Crowd()
    exports = cycle(archives)
    for number in range(size):
        export = next(exports)
        good = {**trigger(0, export, updates), "downloadId": f"download-{number}"}
        match number % 10:
            case 1 if number + 1 < size:  # the next number sends it again
                twin = json.dumps(good)
                crowd.bodies.append(twin)
                crowd.answers[str(good["downloadId"]), "success"] = 2
            case 2:
                crowd.bodies.append(twin)
            case 3:
                crowd.repeated.append(json.dumps(good))
                crowd.answers[str(good["downloadId"]), "success"] = 1
            case 4:
                crowd.bodies.append(json.dumps(good | _wrong(number)))
                crowd.answers[str(good["downloadId"]), "failed"] = 1
            case 5:
                crowd.bodies.append(_junk(number, good))
                crowd.junk += 1
            case _:
                crowd.bodies.append(json.dumps(good))
                crowd.answers[str(good["downloadId"]), "success"] = 1
    return crowd


def _wrong(number: int) -> dict[str, Any]:
    """Fields that make a request invalid."""
    kinds: list[dict[str, Any]] = [
        {"file": "../export.zip"},
        {"totalSize": "many"},
        {"s3Bucket": "bucket-of-somebody-else"},
        {"exportPath": "export/gone.zip"},
    ]
    return kinds[number // 10 % len(kinds)]


def _junk(number: int, good: Mapping[str, Any]) -> str:
    """A message without an address for a callback."""
    kinds = [
        "not JSON",
        json.dumps([good]),
        json.dumps({name: value for name, value in good.items() if name != "downloadId"}),
        json.dumps({**good, "updatesQueueUrl": "http://127.0.0.1/queue-of-somebody-else"}),
        json.dumps(good).replace("{", '{"size": NaN, ', 1),
    ]
    return kinds[number // 10 % len(kinds)]


class Hall:
    """The queues with the crowd's messages and callbacks."""

    def __init__(self, sqs: "SQSClient", crowd: Crowd, triggers: str, updates: str) -> None:
        self._sqs = sqs
        self._crowd = crowd
        self._triggers = triggers
        self._updates = updates
        self._handles: dict[str, str] = {}
        self.redelivered = 0
        self.answers: Counter[tuple[str, str]] = Counter()

    def fill(self) -> None:
        """Send all messages. Receives those to be repeated first, for their receipt handles."""
        for body in self._crowd.repeated:
            self._sqs.send_message(QueueUrl=self._triggers, MessageBody=body)
        while len(self._handles) < len(self._crowd.repeated):
            answer = self._sqs.receive_message(QueueUrl=self._triggers, MaxNumberOfMessages=10)
            for message in answer["Messages"]:
                download = json.loads(message["Body"])["downloadId"]
                self._handles[download] = message["ReceiptHandle"]
        for handle in self._handles.values():
            self._show(handle)
        for body in self._crowd.bodies:
            self._sqs.send_message(QueueUrl=self._triggers, MessageBody=body)

    def repeat(self, running: set[str]) -> None:
        """Make SQS deliver the messages of active exports again."""
        for download in running & self._handles.keys():
            with suppress(ClientError):  # it was deleted meanwhile
                self._show(self._handles.pop(download))
                self.redelivered += 1

    def listen(self) -> None:
        """Receive callbacks."""
        while messages := self._sqs.receive_message(
            QueueUrl=self._updates, MaxNumberOfMessages=10
        ).get("Messages"):
            for message in messages:
                body = json.loads(message["Body"])
                self.answers[body["downloadId"], body["status"]] += 1
                handle = message["ReceiptHandle"]
                self._sqs.delete_message(QueueUrl=self._updates, ReceiptHandle=handle)

    def waiting(self) -> int:
        return self._messages(self._triggers)

    def dead(self) -> int:
        return self._messages(f"{self._triggers}-dead")

    def wrongs(self) -> Iterator[str]:
        """The differences from the expected results."""
        for key in sorted(self._crowd.answers.keys() | self.answers.keys()):
            wanted, found = self._crowd.answers[key], self.answers[key]
            if wanted != found:
                yield f"{key[0]} was answered {key[1]} {found} times instead of {wanted}"
        if self.waiting():
            yield f"{self.waiting()} messages are left in the trigger queue"
        if self.dead() != self._crowd.junk:
            yield f"{self.dead()} dead letters instead of {self._crowd.junk}"

    def _show(self, handle: str) -> None:
        self._sqs.change_message_visibility(
            QueueUrl=self._triggers, ReceiptHandle=handle, VisibilityTimeout=0
        )

    def _messages(self, queue_url: str) -> int:
        answer = self._sqs.get_queue_attributes(
            QueueUrl=queue_url,
            AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
        )
        return sum(map(int, answer["Attributes"].values()))


class Runs:
    """The flow runs of a Prefect server."""

    def __init__(self, api: str) -> None:
        self._prefect = SyncPrefectClient(api)

    def listener(self) -> str | None:
        runs = self._prefect.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["listen"]))
        )
        return str(runs[0].id) if runs else None

    def exports(self) -> Counter[str]:
        """The number of runs of exports by the type of their state."""
        return Counter(run.state_type.value for run in self._all())

    def under_way(self) -> set[str]:
        """The downloads of active runs."""
        return {
            tag.removeprefix("download-")
            for run in self._all()
            if run.state and not run.state.is_final()
            for tag in run.tags
            if tag.startswith("download-")
        }

    def _all(self) -> Iterator[Any]:
        wanted = FlowFilter(name=FlowFilterName(any_=["create-batches"]))
        offset = 0
        while found := self._prefect.read_flow_runs(flow_filter=wanted, limit=200, offset=offset):
            yield from found
            offset += len(found)


def resident(pid: int) -> float | None:
    """MiB of resident memory of a process; None if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return None


def memory_table(samples: Sequence[Sample], answers: int) -> Iterator[str]:
    """A Markdown table of the memory after the warm-up."""
    yield "| MiB resident | first | median | last | max | KiB added by a trigger |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name in ("listener", "flows.serve"):
        warm = [
            (sample.answered, sample.memory[name])
            for sample in samples
            if name in sample.memory and answers * WARM_UP <= sample.answered < answers
        ]
        counts, sizes = [count for count, _ in warm], [size for _, size in warm]
        slope = linear_regression(counts, sizes).slope * 1024
        figures = (sizes[0], median(sizes), sizes[-1], max(sizes))
        yield f"| {name} | {' | '.join(f'{size:.1f}' for size in figures)} | {slope:.1f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triggers", type=int, default=300)
    parser.add_argument("--max-in-flight", type=int, default=4)
    options = parser.parse_args()
    archives = sorted(FIXTURES.glob("4[13]-*"))
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="bench-crowd-")))
        aws = stack.enter_context(embedded_aws())
        database = stack.enter_context(postgresql())
        prefect = stack.enter_context(embedded_prefect(home, database=database.url))
        keys = (aws["AWS_ACCESS_KEY_ID"], aws["AWS_SECRET_ACCESS_KEY"])
        session = boto3.Session(*keys, region_name=REGION)
        s3 = session.client("s3", endpoint_url=aws["AWS_ENDPOINT_URL"])
        sqs = session.client("sqs", endpoint_url=aws["AWS_ENDPOINT_URL"])
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        for path in archives:
            s3.upload_file(str(path), BUCKET, f"export/{path.name}")
        triggers, updates = create_queues(sqs, "crowd", MAX_RECEIVE_COUNT)
        crowd = make_crowd(options.triggers, archives, updates)
        hall = Hall(sqs, crowd, triggers, updates)
        hall.fill()
        environment = {**aws, **prefect, **SETTINGS, "TRIGGER_QUEUE_URL": triggers}
        environment |= {"MAX_IN_FLIGHT": str(options.max_in_flight), "TMPDIR": str(home)}
        runs = Runs(prefect["PREFECT_API_URL"])
        samples: list[Sample] = []
        started = time.monotonic()
        with (home / "serve.log").open("wb") as log:
            served = stack.enter_context(
                child([sys.executable, "-m", "flows.serve"], environment, log)
            )
        while hall.waiting():
            if served.poll() is not None:
                sys.exit(f"flows.serve ended with status {served.returncode}.")
            hall.listen()
            hall.repeat(runs.under_way())
            pids = {"flows.serve": served.pid, "listener": process_of(runs.listener())}
            sizes = {name: resident(pid) for name, pid in pids.items() if pid}
            memory = {name: size for name, size in sizes.items() if size}
            samples.append(Sample(time.monotonic() - started, hall.answers.total(), memory))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        hall.listen()
        took = time.monotonic() - started
        ended = runs.exports()
        print(*report(crowd, hall, ended, took, options.max_in_flight), sep="\n")
        print("", *memory_table(samples, crowd.answers.total()), sep="\n")
        wrongs = [*hall.wrongs()]
        if ended != {
            "COMPLETED": _of("success", crowd.answers),
            "FAILED": _of("failed", crowd.answers),
        }:
            wrongs.append(f"runs ended {dict(ended)}")
    for wrong in wrongs:
        print(f"WRONG: {wrong}")
    return 1 if wrongs else 0


def report(
    crowd: Crowd, hall: Hall, ended: Counter[str], seconds: float, max_in_flight: int
) -> Iterator[str]:
    """A Markdown table of expected and actual results."""
    yield (
        f"{crowd.size} triggers, MAX_IN_FLIGHT={max_in_flight}; {seconds:.0f} s; "
        f"{os.cpu_count()} cores, {platform.machine()}, {time.strftime('%Y-%m-%d')}\n"
    )
    yield "| | expected | found |"
    yield "| --- | ---: | ---: |"
    yield f"| runs | {crowd.answers.total()} | {ended.total()} |"
    for status in ("success", "failed"):
        found = _of(status, hall.answers)
        yield f"| answered {status} | {_of(status, crowd.answers)} | {found} |"
    yield f"| delivered again | {len(crowd.repeated)} | {hall.redelivered} |"
    yield f"| dead letters | {crowd.junk} | {hall.dead()} |"


def _of(status: str, answers: Counter[tuple[str, str]]) -> int:
    return sum(count for (_, found), count in answers.items() if found == status)


if __name__ == "__main__":
    sys.exit(main())
