"""The Prefect servers, the PostgreSQL and the files that all workers of pytest-xdist share.

They are children of the process that started pytest and end with it. The first test that asks for
a server starts it: workers ask that process by XML-RPC.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from socketserver import ThreadingMixIn
from tempfile import TemporaryDirectory
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit
from xmlrpc.client import ServerProxy
from xmlrpc.server import SimpleXMLRPCServer

import asyncpg  # type: ignore[import-untyped]

from devtools.database import POSTGRESQL, Database, postgresql
from devtools.services import embedded_prefect

ADDRESS = "SHARED_SERVICES"
"""Variable with the URL of the XML-RPC server; workers inherit it."""

UNUSED = ("CANCELLATION_CLEANUP", "FOREMAN", "PAUSE_EXPIRATIONS", "SCHEDULER")
"""Services of Prefect's server that poll the database and that no test needs."""

HOME = "SHARED_FILES"
"""Variable with a directory for files that all workers share."""


def prefect_server(name: str, database: str = "PostgreSQL") -> dict[str, str]:
    """Return the environment that leads to the Prefect server of that name, started if need be.

    Its database is SQLite where this machine has no PostgreSQL.
    """
    environment: Any = ServerProxy(os.environ[ADDRESS]).prefect_server(name, database)
    return {str(key): str(value) for key, value in environment.items()}


def shared_file(name: str, make: Callable[[Path], None]) -> Path:
    """Return a file or directory that all workers share, made by the first that asks for it."""
    path = Path(os.environ[HOME]) / name
    with path.with_suffix(".lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if not path.exists():
            make(path)
    return path


@contextmanager
def shared_services() -> Iterator[None]:
    """Offer the services to this process and its children until the block ends."""
    with (
        TemporaryDirectory(prefix="shared-services-") as home,
        ExitStack() as stack,
        _Server(("127.0.0.1", 0), logRequests=False) as server,
    ):
        start: Any = _Services(Path(home), stack).prefect_server
        server.register_function(start, "prefect_server")
        thread = Thread(target=server.serve_forever)
        thread.start()
        os.environ |= {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in UNUSED}
        os.environ[HOME] = home
        os.environ[ADDRESS] = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingMixIn, SimpleXMLRPCServer):
    pass


class _Services:
    """The services that run; each is started once, whoever asks first."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self._home, self._stack = home, stack
        self._running: dict[str, Any] = {}
        self._locks: dict[str, Lock] = {}
        self._lock = Lock()

    def prefect_server(self, name: str, database: str) -> dict[str, str]:
        def start() -> dict[str, str]:
            home = self._home / name
            home.mkdir()
            url = None
            if POSTGRESQL and database == "PostgreSQL":
                url = self._new_database(name)
            return self._stack.enter_context(embedded_prefect(home, database=url))

        environment: dict[str, str] = self._once(name, start)
        return environment

    def _new_database(self, name: str) -> str:
        server: Database = self._once("PostgreSQL", lambda: self._stack.enter_context(postgresql()))
        url = urlsplit(server.url)
        [host] = parse_qs(url.query)["host"]

        async def create() -> None:
            connection = await asyncpg.connect(host=host, user="postgres", database="postgres")
            await connection.execute(f'CREATE DATABASE "{name}"')
            await connection.close()

        asyncio.run(create())
        return str(urlunsplit(url._replace(path=f"/{name}")))

    def _once(self, name: str, start: Callable[[], Any]) -> Any:
        with self._lock:
            lock = self._locks.setdefault(name, Lock())
        with lock:
            if name not in self._running:
                self._running[name] = start()
            return self._running[name]
