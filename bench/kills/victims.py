"""The processes of a round: started, found, killed, and started again."""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal, get_args
from uuid import UUID

from devtools.database import Database
from devtools.processes import family, processes_with
from devtools.proxy import nginx
from devtools.services import embedded_prefect, free_port

Victim = Literal[
    "flow",
    "sender",
    "listener",
    "both",
    "service",
    "container",
    "prefect",
    "proxy",
    "worker",
    "postgresql",
]
VICTIMS: tuple[Victim, ...] = get_args(Victim)
OUTAGES: tuple[Victim, ...] = ("prefect", "proxy", "postgresql")

Processes = dict[int, UUID | None]
"""Ids of processes, with the flow run that each is for."""

POOL = "kills"

LISTEN = """
from datetime import timedelta
from flows.listening import decision
decision.TIME_TO_START_IN_POOL = timedelta(seconds=60)
from flows.listen import listen
listen()
"""
"""A listener for which a worker counts as dead a minute after it took a run, not 15."""

TIME_TO_EXIT = 10
"""Seconds that a process gets whose run has ended and whose parent was killed."""

TIME_TO_STOP = 90
"""Seconds that flows.serve gets after SIGTERM."""


class Served:
    """``flows.serve`` in a process group of its own, its temporary files in ``tmp``."""

    command = ("-m", "flows.serve")

    def __init__(self, environment: Mapping[str, str], tmp: Path, log: Path) -> None:
        self._environment = {**os.environ, **environment, "TMPDIR": str(tmp), "EFS_PATH": str(tmp)}
        self._tmp = tmp
        self._log = log
        self.process = self._start(*self.command)

    def restart(self) -> None:
        """Start it again, after the process has been killed."""
        self.process.wait()
        self.process = self._start(*self.command)

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
        """Processes that outlive it by more than TIME_TO_EXIT."""
        deadline = time.monotonic() + TIME_TO_EXIT
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def kill(self) -> None:
        """End whatever is left of it."""
        kill(self.processes())
        self.process.wait()

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *command],
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


class Pooled(Served):
    """``listen`` and the worker of a work pool, which runs the exports, instead."""

    command = ("-c", LISTEN)
    work = ("-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process")

    def __init__(self, environment: Mapping[str, str], tmp: Path, log: Path) -> None:
        super().__init__({**environment, "PREFECT_WORKER_QUERY_SECONDS": "1"}, tmp, log)
        self.worker = self._start(*self.work)

    def restart(self) -> None:
        """Start the worker again, after its process has been killed."""
        self.worker.wait()
        self.worker = self._start(*self.work)

    def stop(self) -> bool:
        self.worker.kill()  # after SIGTERM Prefect's worker was still there 90 seconds later
        self.worker.wait()
        return super().stop()

    def kill(self) -> None:
        super().kill()
        self.worker.wait()


class Dependency(ABC):
    """A service that the exports need, and that outlasts its processes."""

    @abstractmethod
    def processes(self) -> Processes:
        """Its live processes, not those of its clients."""

    @abstractmethod
    def start(self) -> None:
        """Start it, the second time where it was."""

    def stop(self) -> None:  # noqa: B027  PostgreSQL leaves nothing to end
        """End it, or the rest of a killed one."""

    def restart(self, away: float) -> None:
        """Start it again, some seconds after it was killed."""
        self.stop()
        time.sleep(away)
        self.start()


class PrefectServer(Dependency):
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
        self._running.close()

    def processes(self) -> Processes:
        found = processes_with(f"PREFECT_SERVER_DATABASE_CONNECTION_URL={self._database}")
        return {pid: None for pid, _ in found}


class Proxy(Dependency):
    """nginx before a Prefect server."""

    def __init__(self, api: str, home: Path) -> None:
        self._api = api
        self._home = home
        self._port = free_port()
        self._running = ExitStack()
        self.url = ""

    def start(self) -> None:
        self.url = self._running.enter_context(nginx(self._api, self._home, port=self._port))

    def stop(self) -> None:
        self._running.close()

    def processes(self) -> Processes:
        return dict.fromkeys(family(int((self._home / "pid").read_text())))


class PostgreSQL(Dependency):
    """Prefect's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(self) -> None:
        self._database.start()

    def processes(self) -> Processes:
        return dict.fromkeys(family(self._database.pid))


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
