"""Finds processes: those of flow runs by their environment, in /proc, proc(5)."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import psutil


def processes_with(variable: str) -> Iterator[tuple[int, list[bytes]]]:
    """Processes with ``variable`` (NAME=value) in their environment, and the whole environment."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            variables = path.read_bytes().split(b"\0")
            if variable.encode() in variables:
                yield int(path.parent.name), variables


def process_of(flow_run_id: UUID | str | None) -> int | None:
    found = processes_with(f"PREFECT__FLOW_RUN_ID={flow_run_id}")
    return next((pid for pid, _ in found), None)


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    first = psutil.Process(pid)
    return [pid, *(child.pid for child in first.children(recursive=True))]
