"""A container of ECS as a process: its command, in its environment and no other."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from devtools.services import end_at_once

ROOT = Path(__file__).parent.parent.parent
RECORDER = ROOT / "tests" / "recorder"


@contextmanager
def container(
    command: Sequence[str], environment: Mapping[str, str], home: Path, calls: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, with the image's PATH and code, and AWS keys that lead to moto.

    It is killed at the end of the block.

    Args:
        home: a new directory; the process's log is in it.
        calls: where the process records its calls to AWS, in a file of home's name.
    """
    home.mkdir()
    with log_path(home).open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=home,
            env={
                **environment,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": str(home),
                "TMPDIR": str(home),
                "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"],
                "AWS_ACCESS_KEY_ID": "task",
                "AWS_SECRET_ACCESS_KEY": "task",
                **recording(calls / home.name),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end_at_once(process)


def recording(path: Path) -> dict[str, str]:
    """The environment in which a process records its calls to AWS in a file."""
    return {"PYTHONPATH": f"{RECORDER}:{ROOT}", "AWS_CALLS": str(path)}


def log_path(home: Path) -> Path:
    return home / "container.log"


def log_of(home: Path) -> str:
    return log_path(home).read_text()
