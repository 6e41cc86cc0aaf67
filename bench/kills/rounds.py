"""Plays the rounds: starts the service, kills the victim, waits until all has settled."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate

from bench.kills.aws import Aws
from bench.kills.counting import (
    BATCH_SIZE,
    Round,
    compare,
    count_attempts,
    count_callbacks,
    count_leftovers,
)
from bench.kills.runs import Runs, download_in
from bench.kills.victims import (
    OUTAGES,
    POOL,
    TIME_TO_STOP,
    VICTIMS,
    Dependency,
    Pooled,
    Processes,
    Served,
    Victim,
    kill,
)
from flows.listen import DEPLOYMENT

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {
    "BATCH_SIZE": str(BATCH_SIZE),
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

JUST_TAKEN = 20.0
"""Seconds after a worker has taken an export in which it is hit: Pending for about half of them."""

POLL = 0.2
"""Seconds between two looks; moto and all the rounds share this process."""


@dataclass
class Span:
    """When something was first and last seen, in seconds of ``time.monotonic()``."""

    first: float
    last: float


class Place:
    """A Prefect server, and the rounds that go on there one after the other.

    Args:
        environment: that of a process that works.
        proxy: the URL of the Prefect server's API behind a proxy.
        outages: the services that can be away, each with the seconds for which it is.
        make_aws: makes a bucket with the exports, and its queues.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        proxy: str,
        outages: Mapping[Victim, tuple[Dependency, float]],
        make_aws: Callable[[], Aws],
        exports: Sequence[Path],
        directory: Path,
    ) -> None:
        self._environment = {**environment, **SETTINGS}
        self._proxy = proxy
        self._outages = outages
        self._make_aws = make_aws
        self._exports = exports
        self._directory = directory
        self._prefect = SyncPrefectClient(environment["PREFECT_API_URL"])
        self._runs = Runs(self._prefect)
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
        directory = self._directory / f"round-{this.number}"
        if directory.exists():  # of a kill that came too late
            shutil.rmtree(directory)
        tmp = directory / "tmp"
        tmp.mkdir(parents=True)
        aws = self._make_aws()
        self._runs.forget()
        with self._serving(this.victim, aws.triggers, tmp, directory / "serve.log") as served:
            killed = None
            if this.victim:
                killed = self._kill(this, this.victim, served, aws)
            else:
                self._watch(served, aws)
            self._wait_until_settled(this, served, aws)
            if not served.stop():
                this.broken.append(f"flows.serve did not stop within {TIME_TO_STOP} s")
            this.left["processes"] = len(served.left())
        count_callbacks(this, self._exports, aws, self._runs, killed)
        if this.victim in OUTAGES:
            count_attempts(this, self._runs)
        found = aws.checksums()
        if this.victim is None:
            self.expected = found
        compare(this, self.expected, found)
        count_leftovers(this, aws, tmp, self._runs)
        aws.remove()
        shutil.rmtree(tmp)
        return this

    @contextmanager
    def _serving(
        self, victim: Victim | None, triggers: str, tmp: Path, log: Path
    ) -> Iterator[Served]:
        """The processes that do the work of a round; those that are left at its end are killed."""
        environment = {**self._environment, "TRIGGER_QUEUE_URL": triggers}
        if victim == "proxy":
            environment["PREFECT_API_URL"] = self._proxy
        if victim == "worker":
            self._deploy_to_pool()
        served = (Pooled if victim == "worker" else Served)(environment, tmp, log)
        try:
            yield served
        finally:
            served.kill()
            if victim == "worker":  # flows.serve makes one of its own
                deployment = self._prefect.read_deployment_by_name(DEPLOYMENT)
                self._prefect.delete_deployment(deployment.id)

    def _deploy_to_pool(self) -> None:
        pool = WorkPoolCreate(name=POOL, type="process")
        self._prefect.create_work_pool(pool, overwrite=True)
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--pool", POOL]
        subprocess.run(
            [*command, "--name", "create-batches"],
            cwd=ROOT,
            env={**os.environ, **self._environment, "PREFECT_LOGGING_LEVEL": "ERROR"},
            stdout=subprocess.DEVNULL,
            check=True,
        )

    def _kill(self, this: Round, victim: Victim, served: Served, aws: Aws) -> float | None:
        """Kill the victim when its time has come; returns the second of the kill, if it was."""
        poll = POLL / 20 if victim == "sender" else POLL
        while not self._find(victim, served, aws) and self._goes_on(served, aws):
            time.sleep(poll)
        time.sleep(this.moment)
        while self._goes_on(served, aws):
            found = self._find(victim, served, aws)
            if not found:
                time.sleep(poll)
                continue
            chosen = random.Random(this.number).choice(found)
            killed = time.time()
            kill(chosen)
            this.left["uploads at the kill"] = len(aws.uploads())
            if victim in ("service", "container", "worker"):
                served.restart()
            if victim in self._outages:
                dependency, away = self._outages[victim]
                dependency.restart(away)
            this.hit = ", ".join(sorted({self._runs.name(run) for run in chosen.values()}))
            return killed
        return None

    def _find(self, victim: Victim, served: Served, aws: Aws) -> list[Processes]:
        """The candidates of a kill: groups of processes that die together."""
        every = served.processes()
        exports: list[Processes] = []
        listeners: list[Processes] = []
        for pid, run in every.items():
            if run:
                (listeners if self._runs.is_listener(run) else exports).append({pid: run})
        match victim:
            case "flow":
                return exports
            case "sender":
                names = [self._runs.name(run) for one in exports for run in one.values()]
                sent = aws.answered()  # last, as time is short
                named = zip(names, exports, strict=True)
                return [one for name, one in named if download_in(name) in sent]
            case "listener":
                return listeners
            case "both":
                return [export | listener for export in exports for listener in listeners]
            case "service":
                return [{served.process.pid: None}]
            case "container":
                return [every]
            case "worker":
                if isinstance(served, Pooled) and self._runs.are_exports_taken():
                    return [{served.worker.pid: None}]
                return []
            case _:
                return [self._outages[victim][0].processes()] if exports else []

    def _goes_on(self, served: Served, aws: Aws) -> bool:
        """Whether there is still something to kill."""
        return served.process.poll() is None and aws.waiting() > 0

    def _watch(self, served: Served, aws: Aws) -> None:
        """Note how long each victim could be hit."""
        spans: dict[Victim, Span] = {}
        while self._goes_on(served, aws):
            now = time.monotonic()
            for victim in VICTIMS:
                if self._find(victim, served, aws):
                    spans.setdefault(victim, Span(now, now)).last = now
            time.sleep(5 * POLL)  # looking for every victim takes time from the run itself
        self.spans = {victim: span.last - span.first for victim, span in spans.items()}
        self.spans |= {"sender": JUST_SENT, "worker": JUST_TAKEN}

    def _wait_until_settled(self, this: Round, served: Served, aws: Aws) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if served.process.poll() is not None:
                this.broken.append(f"the service ended with {served.process.returncode}")
                return
            ended = all(run.state and run.state.is_final() for run in self._runs.exports())
            if ended and aws.waiting() == 0:
                self._wait_for_the_listener(this, served)
                return
            time.sleep(1)
        this.broken.append(f"not settled after {PATIENCE} s")

    def _wait_for_the_listener(self, this: Round, served: Served) -> None:
        """A listener that was killed comes back even if there is nothing to do for it."""
        deadline = time.monotonic() + TIME_TO_COME_BACK
        while time.monotonic() < deadline:
            states = [run.state_name for run in self._runs.listeners()]
            parents = [
                _parent(pid)
                for pid, run in served.processes().items()
                if run and self._runs.is_listener(run)
            ]
            wanted = [] if isinstance(served, Pooled) else [served.process.pid]
            if states == ["Running"] and parents == wanted:
                return
            time.sleep(1)
        this.broken.append(f"{len(parents)} processes of the listener, runs {states}")


def _parent(pid: int) -> int | None:
    """The parent of a process; None if it has just ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None
