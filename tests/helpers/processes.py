"""Starts, awaits and kills the service and its runs as processes."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import IO, TypeVar
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun, StateType

from devtools.processes import process_of
from devtools.services import served
from tests.helpers.biospex import Biospex

Found = TypeVar("Found")


def serving(
    biospex: Biospex, output: IO[bytes] | None = None, **environment: str
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Serve both flows from a process that listens to BIOSPEX's trigger queue.

    Its log goes to ``output``.
    """
    return served({"TRIGGER_QUEUE_URL": biospex.trigger_queue_url, **environment}, output)


def eventually(look: Callable[[], Found | None], within: float = 180) -> Found:
    """Return the result of ``look`` as soon as it is not empty.

    A look may cost a server as much as the work that it waits for, so looks become rarer.
    """
    deadline = time.monotonic() + within
    pause = 0.1
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(pause)
        pause = min(1.2 * pause, 0.4)
    raise AssertionError(f"It did not happen within {within} seconds.")


def run_named(prefect: SyncPrefectClient, name: str, state: StateType | None = None) -> FlowRun:
    """Return the run of that name and state as soon as there is one."""
    of_that_name = FlowRunFilter(name=FlowRunFilterName(any_=[name]))

    def find() -> FlowRun | None:
        for run in prefect.read_flow_runs(flow_run_filter=of_that_name):
            if state in (None, run.state_type):
                return run
        return None

    return eventually(find)


def kill(flow_run_id: UUID) -> None:
    """Kill the process of a flow run as soon as there is one."""
    os.kill(eventually(lambda: process_of(flow_run_id)), signal.SIGKILL)
