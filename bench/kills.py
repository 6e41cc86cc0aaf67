"""Kills processes during exports and checks the guarantees: ``python -m bench.kills --rounds 50``.

Each round puts a ZIP, which is spliced, and a tar.gz, which is extracted, into a bucket of its own,
starts ``flows.serve`` and kills (SIGKILL) its victim at a random moment:

flow        the process of one export
sender      the process of an export that has just sent its callback, at once or a little later
listener    the process of ``listen``
both        those two at once
service     the process of ``flows.serve`` alone; its children live on, and it is started again
container   every process of ``flows.serve``, which is started again
prefect     the Prefect server, which is started again after ``--outage`` seconds; no export may
            need a second attempt for that

When the trigger queue is empty and every run has ended, the round counts callbacks, compares each
object with that of an undisturbed run, and looks for what is left. SQS is moto's, S3 is
SeaweedFS, Prefect's database is PostgreSQL. A service serves every run that its Prefect API has, so
rounds that go on at the same time have a Prefect server each. The exit status is 1 if a round broke
the promise.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args
from uuid import UUID, uuid4

import boto3
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun

from bench.export import MEAN_IMAGE, make_export
from devtools.database import postgresql
from devtools.object_store import seaweedfs
from devtools.processes import processes_with
from devtools.services import (
    REGION,
    create_queues,
    embedded_aws,
    embedded_prefect,
    free_port,
    trigger,
)
from flows.support.artifacts import CALLBACK_KEY
from flows.support.prefect_texts import SERVICE_STOPPED
from flows.support.recovery import failed_attempts
from splitter.aws.s3 import CLIENT_CONFIG

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

Victim = Literal["flow", "sender", "listener", "both", "service", "container", "prefect"]
Processes = dict[int, UUID | None]
"""Ids of processes, with the flow run that each is for."""

VICTIMS: tuple[Victim, ...] = get_args(Victim)
LEFTOVERS = ("uploads", "files", "other files", "messages", "dead letters", "runs", "processes")

IMAGES = 500
SETTINGS = {
    "BATCH_SIZE": "100",
    "SPLICE_MIN_SIZE": "0",
    "VISIBILITY_TIMEOUT": "30",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}
PATIENCE = 900
"""Seconds after which a round that has not settled is given up."""

TIME_TO_COME_BACK = 60
"""Seconds that a listener gets to be back when all is done."""

JUST_SENT = 0.05
"""Seconds after a callback in which its sender is hit."""

POLL = 0.2
"""Seconds between two looks; moto and all the rounds share this process."""

TIME_TO_EXIT = 10
"""Seconds that a process gets whose run has ended and whose parent was killed."""

TIME_TO_STOP = 90
"""Seconds that flows.serve gets after SIGTERM."""


@dataclass
class Span:
    """When something was first and last seen, in seconds of ``time.monotonic()``."""

    first: float
    last: float


@dataclass
class Round:
    """One kill and what came of it.

    Attributes:
        moment: seconds between the victim's appearance and the kill.
        hit: what the kill hit, in words; None if all was over before.
        seconds: from the kill to the last callback; None if that was out before.
        left: what was left, by kind.
        broken: the sentences that make the round a failure.
        notes: what is worth knowing and allowed.
    """

    number: int
    victim: Victim | None
    moment: float
    hit: str | None = None
    callbacks: int = 0
    duplicates: int = 0
    wrong: int = 0
    seconds: float | None = None
    left: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Served:
    """``flows.serve`` in a process group of its own, its temporary files in ``tmp``."""

    def __init__(self, environment: Mapping[str, str], tmp: Path, log: Path) -> None:
        self._environment = {**os.environ, **environment, "TMPDIR": str(tmp), "EFS_PATH": str(tmp)}
        self._tmp = tmp
        self._log = log
        self.process = self._start()

    def restart(self) -> None:
        """Start it again, after the process has been killed."""
        self.process.wait()
        self.process = self._start()

    def processes(self) -> Processes:
        """The live processes, each with the flow run that it is for."""
        found: Processes = {}
        for pid, variables in processes_with(f"TMPDIR={self._tmp}"):
            ids = [v for v in variables if v.startswith(b"PREFECT__FLOW_RUN_ID=")]
            found[pid] = UUID(ids[0].partition(b"=")[2].decode()) if ids else None
        return found

    def stop(self) -> bool:
        """Ask it to end, as systemd or a container engine would; whether it did in time."""
        self.process.terminate()
        try:
            self.process.wait(TIME_TO_STOP)
        except subprocess.TimeoutExpired:
            return False
        return True

    def left(self) -> Processes:
        """Processes that outlive flows.serve by more than TIME_TO_EXIT."""
        deadline = time.monotonic() + TIME_TO_EXIT
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(POLL)
        return found

    def kill(self) -> None:
        """End whatever is left of it."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.serve"],
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


class PrefectServer:
    """A Prefect server whose runs outlive its process."""

    def __init__(self, home: Path, database: str) -> None:
        self._home = home
        self._database = database
        self._port = free_port()
        self._running = ExitStack()
        self.environment: Mapping[str, str] = {}

    def start(self) -> None:
        self.environment = self._running.enter_context(
            embedded_prefect(self._home, self._port, self._database)
        )

    def stop(self) -> None:
        """End it, or see to what is left of it."""
        self._running.close()

    def processes(self) -> Processes:
        """The live processes of the server, not those of its clients."""
        found = processes_with(f"PREFECT_SERVER_DATABASE_CONNECTION_URL={self._database}")
        return {pid: None for pid, _ in found}


class Place:
    """A Prefect server, and the rounds that go on there one after the other."""

    def __init__(
        self,
        server: PrefectServer,
        outage: float,
        environment: Mapping[str, str],
        s3: "S3Client",
        sqs: "SQSClient",
        exports: Sequence[Path],
        directory: Path,
    ) -> None:
        self._server = server
        self._outage = outage
        self._environment = {**environment, **server.environment}
        self._s3 = s3
        self._sqs = sqs
        self._exports = exports
        self._directory = directory
        self._prefect = SyncPrefectClient(server.environment["PREFECT_API_URL"])
        self._listening: dict[UUID, bool] = {}
        self._names: dict[UUID, str] = {}
        self.expected: dict[str, str] = {}
        self.spans: dict[Victim, float] = {}

    def rehearse(self) -> None:
        """Learn from an undisturbed run what is to come, and how long each victim lives.

        Raises:
            RuntimeError: if that run is not as it should be.
        """
        for number in (-1, 0):  # the first finds everything cold
            found = self.play(Round(number, None, 0.0))
            if found.broken:
                raise RuntimeError(f"The undisturbed run: {'; '.join(found.broken)}")

    def play(self, this: Round) -> Round:
        """One round; ``this`` with everything filled in."""
        bucket = f"kills-{uuid4()}"
        directory = self._directory / f"round-{this.number}"
        tmp = directory / "tmp"
        tmp.mkdir(parents=True)
        self._s3.create_bucket(Bucket=bucket)
        triggers, updates = create_queues(self._sqs, bucket)
        for path in self._exports:
            self._s3.upload_file(str(path), bucket, f"export/{path.name}")
            body = {**trigger(0, path, updates), "downloadId": path.name, "s3Bucket": bucket}
            self._sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(body))
        environment = {**self._environment, **SETTINGS, "TRIGGER_QUEUE_URL": triggers}
        before = {run.id for run in self._runs()}
        served = Served(environment, tmp, directory / "serve.log")
        try:
            killed = None
            if this.victim:
                killed = self._kill(this, served, triggers, updates, bucket)
            else:
                self._watch(served, triggers, updates)
            self._wait_until_settled(this, served, triggers, before)
            if not served.stop():
                this.broken.append(f"flows.serve did not stop within {TIME_TO_STOP} s")
            this.left["processes"] = len(served.left())
        finally:
            served.kill()
        self._count_callbacks(this, updates, before, killed)
        if this.victim == "prefect":
            self._count_attempts(this, before)
        self._compare(this, bucket)
        self._count_leftovers(this, bucket, triggers, tmp, before)
        self._remove(bucket)
        shutil.rmtree(tmp)
        return this

    def _kill(
        self, this: Round, served: Served, triggers: str, updates: str, bucket: str
    ) -> float | None:
        """Kill the victim when its time has come; returns the second of the kill, if it was."""
        poll = POLL / 20 if this.victim == "sender" else POLL
        while not self._find(this.victim, served, updates) and self._goes_on(served, triggers):
            time.sleep(poll)
        time.sleep(this.moment)
        while self._goes_on(served, triggers):
            found = self._find(this.victim, served, updates)
            if not found:
                time.sleep(poll)
                continue
            chosen = random.Random(this.number).choice(found)
            killed = time.time()
            for pid in chosen:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            this.left["uploads at the kill"] = len(self._uploads(bucket))
            if this.victim in ("service", "container"):
                served.restart()
            if this.victim == "prefect":
                self._server.stop()
                time.sleep(self._outage)
                self._server.start()
            this.hit = ", ".join(sorted({self._name(run) for run in chosen.values()}))
            return killed
        return None

    def _find(self, victim: Victim | None, served: Served, updates: str) -> list[Processes]:
        """The candidates of a kill: groups of processes that die together."""
        every = served.processes()
        exports: list[Processes] = []
        listeners: list[Processes] = []
        for pid, run in every.items():
            if run:
                (listeners if self._listens(run) else exports).append({pid: run})
        match victim:
            case "flow":
                return exports
            case "sender":
                names = [self._name(run) for one in exports for run in one.values()]
                sent = self._peek(updates)  # last, as time is short
                named = zip(names, exports, strict=True)
                return [one for name, one in named if name.rpartition(" ")[2] in sent]
            case "listener":
                return listeners
            case "both":
                return [export | listener for export in exports for listener in listeners]
            case "service":
                return [{served.process.pid: None}]
            case "prefect":
                return [self._server.processes()] if exports else []
            case _:
                return [every]

    def _goes_on(self, served: Served, triggers: str) -> bool:
        """Whether there is still something to kill."""
        return served.process.poll() is None and not self._is_empty(triggers)

    def _watch(self, served: Served, triggers: str, updates: str) -> None:
        """Note how long each victim could be hit."""
        spans: dict[Victim, Span] = {}
        while self._goes_on(served, triggers):
            now = time.monotonic()
            for victim in VICTIMS:
                if self._find(victim, served, updates):
                    spans.setdefault(victim, Span(now, now)).last = now
            time.sleep(5 * POLL)  # looking for every victim takes time from the run itself
        self.spans = {victim: span.last - span.first for victim, span in spans.items()}
        self.spans["sender"] = JUST_SENT

    def _wait_until_settled(
        self, this: Round, served: Served, triggers: str, before: set[UUID]
    ) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if served.process.poll() is not None:
                this.broken.append(f"flows.serve ended with {served.process.returncode}")
                return
            exports = [run for run in self._new(before) if not self._listens(run.id)]
            ended = all(run.state and run.state.is_final() for run in exports)
            if ended and self._is_empty(triggers):
                self._wait_for_the_listener(this, served, before)
                return
            time.sleep(1)
        this.broken.append(f"not settled after {PATIENCE} s")

    def _wait_for_the_listener(self, this: Round, served: Served, before: set[UUID]) -> None:
        """A listener that was killed comes back even if there is nothing to do for it."""
        deadline = time.monotonic() + TIME_TO_COME_BACK
        while time.monotonic() < deadline:
            states = [run.state_name for run in self._new(before) if self._listens(run.id)]
            processes = [p for p, run in served.processes().items() if run and self._listens(run)]
            if states == ["Running"] and [*map(_parent, processes)] == [served.process.pid]:
                return
            time.sleep(1)
        this.broken.append(f"{len(processes)} processes of the listener, runs {states}")

    def _count_callbacks(
        self, this: Round, updates: str, before: set[UUID], killed: float | None
    ) -> None:
        sent: dict[str, list[float]] = {path.name: [] for path in self._exports}
        for body, moment in self._received(updates):
            this.callbacks += 1
            sent[body["downloadId"]].append(moment)
            stem = body["downloadId"].removesuffix(".zip").removesuffix(".tar.gz")
            wanted = [f"{stem}-part{part}.zip" for part in range(1, IMAGES // 100 + 1)]
            if body.get("batchFiles") != wanted:
                this.broken.append(f"callback {json.dumps(body)}")
        for download, moments in sent.items():
            if not moments:
                this.broken.append(f"no callback for {download}")
            if len(moments) > 1:
                this.duplicates += len(moments) - 1
                story = self._story(download, before, killed)
                at = ", ".join(f"{moment - (killed or 0):+.3f}" for moment in sorted(moments))
                noted = self._noted(download, before)
                allowed = (
                    killed is not None
                    and len(moments) == 2
                    and min(moments) <= killed
                    and not any(note <= killed for note in noted)
                )
                text = f"{len(moments)} callbacks for {download}, sent at {at} s; {story}"
                (this.notes if allowed else this.broken).append(text)
        if killed is not None:
            late = [moment for moments in sent.values() for moment in moments if moment > killed]
            this.seconds = max(late) - killed if late else None

    def _count_attempts(self, this: Round, before: set[UUID]) -> None:
        """An outage of Prefect is no fault of an export, nor of the service."""
        for run in self._new(before):
            states = self._prefect.read_flow_run_states(run.id)
            failed = [end for end in failed_attempts(states) if end.message != SERVICE_STOPPED]
            if failed:
                ends = ", ".join(f"{state.name} ({state.message})" for state in failed)
                this.broken.append(f"{run.name} was tried more than once: {ends}")

    def _compare(self, this: Round, bucket: str) -> None:
        found = {}
        for key in self._keys(bucket):
            if not key.startswith("export/"):
                body = self._s3.get_object(Bucket=bucket, Key=key)["Body"]
                found[key] = hashlib.file_digest(body, "sha256").hexdigest()  # type: ignore[arg-type]
        if this.victim is None:
            self.expected = found
        for key in sorted(self.expected.keys() | found.keys()):
            if self.expected.get(key) != found.get(key):
                this.wrong += 1
                state = "other bytes" if key in found else "missing"
                this.broken.append(f"{key}: {state if key in self.expected else 'not asked for'}")

    def _count_leftovers(
        self, this: Round, bucket: str, triggers: str, tmp: Path, before: set[UUID]
    ) -> None:
        uploads = self._uploads(bucket)
        this.left["uploads"] = len(uploads)
        ours = sorted(path.name for path in tmp.glob("biospex-batch-*"))
        # Not Prefect's empty directories: a runner leaves one even when it is stopped cleanly.
        others = [
            str(path.relative_to(tmp))
            for path in sorted(tmp.rglob("*"))
            if path.is_file() and not path.relative_to(tmp).parts[0].startswith("biospex-batch-")
        ]
        this.left["files"] = len(ours)
        this.left["other files"] = len(others)
        this.left["messages"] = self._messages(triggers)
        dead = f"{triggers}-dead"
        this.left["dead letters"] = self._messages(dead)
        unfinished = [
            f"{run.name} {run.state_name}"
            for run in self._new(before)
            if not run.state or not run.state.is_final()
        ]
        this.left["runs"] = len(unfinished)
        details = {"uploads": uploads, "files": ours, "other files": others, "runs": unfinished}
        for kind in LEFTOVERS:
            if this.left[kind]:
                what = ", ".join(details.get(kind, []))
                this.broken.append(f"{this.left[kind]} {kind} left {what}".rstrip())

    def _story(self, download: str, before: set[UUID], killed: float | None) -> str:
        """The states of a download's run and the notes of its callback, in seconds to the kill."""
        start = killed or 0.0
        lines = []
        for run in self._runs_of(download, before):
            states = self._prefect.read_flow_run_states(run.id)
            lines += [(state.timestamp.timestamp(), state.name or "") for state in states]
        lines += [(moment, "callback noted") for moment in self._noted(download, before)]
        return ", ".join(f"{name} {moment - start:+.3f}" for moment, name in sorted(lines))

    def _noted(self, download: str, before: set[UUID]) -> list[float]:
        ids = [run.id for run in self._runs_of(download, before)]
        artifacts = self._prefect.read_artifacts(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)),
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[CALLBACK_KEY])),
        )
        return [artifact.created.timestamp() for artifact in artifacts if artifact.created]

    def _runs_of(self, download: str, before: set[UUID]) -> list[FlowRun]:
        return [run for run in self._new(before) if run.name.endswith(f"for download {download}")]

    def _runs(self) -> list[FlowRun]:
        found: list[FlowRun] = []
        while more := self._prefect.read_flow_runs(limit=200, offset=len(found)):
            found += more
        return found

    def _new(self, before: set[UUID]) -> list[FlowRun]:
        return [run for run in self._runs() if run.id not in before]

    def _name(self, run_id: UUID | None) -> str:
        """The role of a process."""
        if run_id is None:
            return "a service"
        if run_id not in self._names:
            name = self._prefect.read_flow_run(run_id).name
            if " " not in name:  # Prefect's own, until the run begins
                return name
            self._names[run_id] = name
        return self._names[run_id]

    def _listens(self, run_id: UUID) -> bool:
        """Whether a run is the listener's; its name tells only once it runs."""
        if run_id not in self._listening:
            flow = self._prefect.read_flow_run(run_id).flow_id
            self._listening[run_id] = self._prefect.read_flow(flow).name == "listen"
        return self._listening[run_id]

    def _received(self, queue_url: str) -> Iterator[tuple[dict[str, Any], float]]:
        """Every message of a queue, with the second at which it was sent."""
        while messages := self._sqs.receive_message(
            QueueUrl=queue_url, AttributeNames=["SentTimestamp"], MaxNumberOfMessages=10
        ).get("Messages"):
            for message in messages:
                handle = message["ReceiptHandle"]
                self._sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=handle)
                yield json.loads(message["Body"]), int(message["Attributes"]["SentTimestamp"]) / 1e3

    def _peek(self, queue_url: str) -> list[str]:
        """The downloads of the callbacks that are in a queue, which stay there."""
        if self._is_empty(queue_url):
            return []
        answer = self._sqs.receive_message(
            QueueUrl=queue_url, MaxNumberOfMessages=10, VisibilityTimeout=0
        )
        return [json.loads(message["Body"])["downloadId"] for message in answer["Messages"]]

    def _is_empty(self, queue_url: str) -> bool:
        return self._messages(queue_url) == 0

    def _messages(self, queue_url: str) -> int:
        answer = self._sqs.get_queue_attributes(
            QueueUrl=queue_url,
            AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
        )
        return sum(map(int, answer["Attributes"].values()))

    def _uploads(self, bucket: str) -> list[str]:
        answer = self._s3.list_multipart_uploads(Bucket=bucket)
        return [upload["Key"] for upload in answer.get("Uploads", [])]

    def _keys(self, bucket: str) -> list[str]:
        listed = self._s3.list_objects_v2(Bucket=bucket)
        return [entry["Key"] for entry in listed.get("Contents", [])]

    def _remove(self, bucket: str) -> None:
        """Delete a bucket and what it holds, which gives SeaweedFS the space back."""
        for upload in self._s3.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
            self._s3.abort_multipart_upload(
                Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        for key in self._keys(bucket):
            self._s3.delete_object(Bucket=bucket, Key=key)
        self._s3.delete_bucket(Bucket=bucket)


def _parent(pid: int) -> int | None:
    """The parent of a process; None if it has just ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def make_exports(directory: Path) -> list[Path]:
    """A ZIP and a tar.gz of the same members."""
    directory.mkdir()
    exports = [directory / "41-spliced.zip", directory / "43-extracted.tar.gz"]
    for path in exports:
        make_export(path, IMAGES, order="merged")
    return exports


def line(this: Round) -> str:
    """The printed line of a round."""
    hit = f"{this.hit} after {this.moment:.1f} s" if this.hit else "nothing, all was over"
    took = f", {this.seconds:.0f} s to the last callback" if this.seconds is not None else ""
    extra = "".join(f"\n      {note}" for note in this.notes)
    extra += "".join(f"\n      BROKEN: {reason}" for reason in this.broken)
    return f"{this.number:4} {this.victim}: {hit}; {this.callbacks} callbacks{took}{extra}"


def table(rounds: Sequence[Round]) -> Iterator[str]:
    """A Markdown table of the rounds by what was killed."""
    counted = ("callbacks", "duplicates", "objects wrong")
    heads = ("killed", "rounds", "hit", *counted, *LEFTOVERS, "broken", "s median", "s max")
    yield f"| {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * (len(heads) - 1)}"
    for name in (*VICTIMS, "all"):
        these = [one for one in rounds if name in (one.victim, "all")]
        seconds = [one.seconds for one in these if one.seconds is not None]
        cells = [
            name,
            len(these),
            sum(one.hit is not None for one in these),
            sum(one.callbacks for one in these),
            sum(one.duplicates for one in these),
            sum(one.wrong for one in these),
            *(sum(one.left[kind] for one in these) for kind in LEFTOVERS),
            sum(bool(one.broken) for one in these),
            f"{median(seconds):.0f}" if seconds else "-",
            f"{max(seconds):.0f}" if seconds else "-",
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    parser.add_argument("--only", type=int, metavar="ROUND", help="repeat this round alone")
    parser.add_argument("--places", type=int, default=3, help="rounds at a time")
    parser.add_argument("--outage", type=float, default=180, help="seconds without Prefect (180)")
    parser.add_argument("--directory", type=Path, help="where the logs are kept; must not exist")
    options = parser.parse_args()
    numbers = [options.only] if options.only else list(range(1, options.rounds + 1))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="bench-kills-")))
        logs = options.directory or scratch / "logs"
        exports = make_exports(scratch / "exports")
        aws = stack.enter_context(embedded_aws())
        endpoint = stack.enter_context(seaweedfs(scratch / "store"))
        keys = (aws["AWS_ACCESS_KEY_ID"], aws["AWS_SECRET_ACCESS_KEY"])
        session = boto3.Session(*keys, region_name=REGION)
        s3 = session.client("s3", endpoint_url=endpoint, config=CLIENT_CONFIG)
        sqs = session.client("sqs", endpoint_url=aws["AWS_ENDPOINT_URL"])
        places: SimpleQueue[Place] = SimpleQueue()
        for number in range(min(options.places, len(numbers))):
            home = scratch / f"prefect-{number}"
            home.mkdir()
            server = PrefectServer(home, stack.enter_context(postgresql()))
            stack.callback(server.stop)
            server.start()
            environment = {**aws, "AWS_ENDPOINT_URL_S3": endpoint}
            place = Place(
                server, options.outage, environment, s3, sqs, exports, logs / f"place-{number}"
            )
            places.put(place)
        pool = ThreadPoolExecutor(places.qsize())
        stack.callback(pool.shutdown, cancel_futures=True)

        def rehearse(_: int) -> Place:
            place = places.get()
            place.rehearse()
            return place

        rehearsed = list(pool.map(rehearse, range(places.qsize())))
        for place in rehearsed:
            places.put(place)
        # The shortest, so that few kills come too late.
        spans = {name: min(place.spans[name] for place in rehearsed) for name in VICTIMS}
        print(
            f"{len(exports)} exports of {IMAGES * MEAN_IMAGE / 1e6:.0f} MB, {len(place.expected)} "
            f"batches; seed {options.seed}; {places.qsize()} rounds at a time; {os.cpu_count()} "
            f"cores, {platform.machine()}, {time.strftime('%Y-%m-%d')}\nUndisturbed, seconds: "
            + ", ".join(f"{victim} {seconds:.1f}" for victim, seconds in spans.items()),
            flush=True,
        )

        def play(number: int) -> Round:
            victim = VICTIMS[(number - 1) % len(VICTIMS)]
            place = places.get()
            share = random.Random(f"{options.seed} {number}").random()
            this = place.play(Round(number, victim, share * spans[victim]))
            places.put(place)
            print(line(this), flush=True)
            return this

        rounds = list(pool.map(play, numbers))
    print("", *table(rounds), sep="\n")
    broken = [this for this in rounds if this.broken]
    for this in broken:
        print(f"To repeat: python -m bench.kills --seed {options.seed} --only {this.number}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
