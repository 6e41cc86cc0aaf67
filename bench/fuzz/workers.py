"""Runs inputs in processes with limits of time and memory, and watches the processes."""

import multiprocessing
import os
import random
import resource
import signal
import time
import traceback
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, Final

from bench.fuzz.archive_promises import check_archive
from bench.fuzz.archives import MIB, make_archive
from bench.fuzz.manifests import check_manifest, make_manifest
from bench.fuzz.mutations import BrokenPromiseError
from bench.fuzz.streams import check_stream, make_stream
from bench.fuzz.tars import make_tar
from bench.fuzz.texts import check_cost, check_text, make_cost, make_text

SECONDS = 60
"""Processor seconds after which an input counts as endless. The slowest takes 15: a manifest of
60 MiB of quotation marks, twice."""

PATIENCE = 300
"""Seconds after which a worker counts as stuck."""

MEMORY = 768 * MIB
"""Bytes in addition to an idle worker: several times the 64 MiB that are read as a whole."""

FILE_SIZE = 96 * MIB
"""Bytes of the store. Any archive may unpack to 64 MiB, and inputs are small."""
MINIMISE_SECONDS = 20.0
SHOWN_AS_TEXT = 600


@dataclass(frozen=True)
class Target:
    make: Callable[[random.Random], bytes]
    check: Callable[[bytes, Path], bool]

    def input(self, name: str, seed: int, number: int) -> bytes:
        return self.make(random.Random(f"{name}:{seed}:{number}"))


TARGETS: Final = {
    "archive": Target(make_archive, check_archive),
    "tar": Target(make_tar, check_archive),
    "stream": Target(make_stream, check_stream),
    "manifest": Target(make_manifest, check_manifest),
    "sentences": Target(make_text, check_text),
    "cost": Target(make_cost, check_cost),
}


def verdict(target: Target, data: bytes, directory: Path) -> tuple[bool, str, str]:
    """Whether an input is accepted, and the failed check with its traceback, if any."""
    try:
        return target.check(data, directory), "", ""
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/splitter/" in frame.filename] or frames
        where = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
        what = (
            str(error)
            if isinstance(error, BrokenPromiseError)
            else f"{type(error).__name__} in {where}"
        )
        return False, what, "".join(traceback.format_exception(error))


def minimised(data: bytes, broken: Callable[[bytes], bool]) -> bytes:
    """A shorter input that fails too. Removes ever smaller stretches."""
    deadline = time.monotonic() + MINIMISE_SECONDS
    size = len(data) // 2
    while size and time.monotonic() < deadline:
        start = 0
        while start < len(data) and time.monotonic() < deadline:
            shorter = data[:start] + data[start + size :]
            if broken(shorter):
                data = shorter
            else:
                start += size
        size //= 2
    return data


def work(name: str, seed: int, first: int, step: int, state: Any, report: Connection) -> None:
    """Run every ``step``-th input from ``first`` until the process is killed.

    Args:
        state: shared with the watchdog: the input's number and start, the numbers of accepted and
            refused inputs.
        report: receives each failed check with its traceback and input.
    """
    target = TARGETS[name]
    target.input(name, seed, 0)
    _limit(resource.RLIMIT_DATA, _data_bytes() + MEMORY)
    _limit(resource.RLIMIT_FSIZE, FILE_SIZE)
    known: set[str] = set()
    with TemporaryDirectory(prefix="fuzz-") as home:
        os.chdir(home)
        directory = Path(home, "run")
        directory.mkdir()

        def run(data: bytes) -> tuple[bool, str, str]:
            state[1] = time.monotonic()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process
            return verdict(target, data, directory)

        def breaks(what: str, data: bytes) -> bool:
            return run(data)[1] == what

        for number in count(first, step):
            state[0] = number
            accepted, what, story = run(target.input(name, seed, number))
            state[2 if accepted else 3] += 1
            if what and what not in known:
                known.add(what)
                data = target.input(name, seed, number)
                data = minimised(data, partial(breaks, what))
                report.send((what, f"{name}:{seed}:{number}", story, data))
            if list(Path(home).iterdir()) != [directory]:
                report.send(("written outside the store", f"{name}:{seed}:{number}", "", b""))


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _data_bytes() -> int:
    """The data size of this process, as in RLIMIT_DATA."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmData:")[2].split()[0]) * 1024


class Worker:
    """A process that runs inputs."""

    def __init__(self, name: str, seed: int, first: int, step: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self.seed, self.step = name, seed, step
        self.state = context.Array("d", [first, time.monotonic(), 0, 0], lock=False)
        self.reports, report = context.Pipe(duplex=False)
        self.process = context.Process(
            target=work, args=(name, seed, first, step, self.state, report), daemon=True
        )
        self.process.start()
        report.close()

    @property
    def number(self) -> int:
        return int(self.state[0])

    def ended_badly(self) -> str | None:
        if not self.process.is_alive():
            if self.process.exitcode == -signal.SIGPROF:
                return f"no end after {SECONDS} processor seconds"
            return f"the process died ({self.process.exitcode})"
        if time.monotonic() - self.state[1] > PATIENCE:
            return f"no end after {PATIENCE} s"
        return None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def fuzz(seconds: float, seed: int, workers: int, finds: Path | None) -> int:
    """Run for ``seconds`` and return the number of different finds."""
    running = [Worker(name, seed, number, workers) for name in TARGETS for number in range(workers)]
    counts: Counter[tuple[str, str]] = Counter()
    found: Counter[tuple[str, str]] = Counter()

    def note(name: str, what: str, which: str, story: str, data: bytes) -> None:
        nonlocal finds
        found[name, what] += 1
        if found[name, what] > 1:
            return
        print(f"\nFOUND {name}: {what}\n  input {which}, {len(data):,} bytes minimised")
        if len(data) <= SHOWN_AS_TEXT:
            print(f"  base64 {b64encode(data).decode()}")
        else:
            finds = finds or Path(mkdtemp(prefix="fuzz-finds-"))
            finds.mkdir(parents=True, exist_ok=True)
            path = finds / which.replace(":", "-")
            path.write_bytes(data)
            print(f"  in {path}")
        print("".join(f"  {line}\n" for line in story.splitlines()[-12:]), flush=True)

    def read_reports(worker: Worker) -> None:
        with suppress(EOFError):
            while worker.reports.poll():
                note(worker.name, *worker.reports.recv())

    def collect(worker: Worker) -> None:
        read_reports(worker)
        for kind, position in (("accepted", 2), ("refused", 3)):
            counts[worker.name, kind] += int(worker.state[position])
            worker.state[position] = 0

    start = time.monotonic()
    try:
        while time.monotonic() - start < seconds:
            time.sleep(0.5)
            for position, worker in enumerate(running):
                read_reports(worker)
                if what := worker.ended_badly():
                    worker.stop()
                    collect(worker)
                    which = f"{worker.name}:{seed}:{worker.number}"
                    data = TARGETS[worker.name].input(worker.name, seed, worker.number)
                    note(worker.name, what, which, "", data)
                    running[position] = Worker(worker.name, seed, worker.number + workers, workers)
    finally:
        elapsed = time.monotonic() - start
        for worker in running:
            worker.stop()
            collect(worker)
    for name in TARGETS:
        accepted, refused = counts[name, "accepted"], counts[name, "refused"]
        print(
            f"{name}: {accepted + refused:,} inputs in {elapsed:.0f} s "
            f"({(accepted + refused) / elapsed:.0f}/s), {accepted:,} accepted, {refused:,} refused"
        )
    print(f"seed {seed}: {len(found)} finds")
    return len(found)


def again(which: str) -> int:
    """Run one input without limits; returns 1 if a check fails."""
    name, seed, number = which.split(":")
    target = TARGETS[name]
    data = target.input(name, int(seed), int(number))
    with TemporaryDirectory(prefix="fuzz-") as home:
        accepted, what, story = verdict(target, data, Path(home))
    print(f"{len(data):,} bytes: {story or ('accepted' if accepted else 'refused')}")
    return 1 if what else 0
