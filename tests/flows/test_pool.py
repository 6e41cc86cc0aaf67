"""Runs that wait for a work pool: to wait in line is not to fail, to be taken is not to run."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType

from devtools.processes import process_of
from devtools.services import child
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex
from tests.helpers.processes import eventually, run_named

pytestmark = [
    pytest.mark.prefect_server("pool"),
    pytest.mark.usefixtures("prefect_api", "aws"),
    pytest.mark.soak,
]

ROOT = Path(__file__).parent.parent.parent
POOL = "one-at-a-time"
START_TIMEOUT = 45
"""Seconds; longer than one start takes on a busy machine, shorter than all exports take."""

LISTEN = """
from datetime import timedelta
from flows.listening import decision
decision.TIME_TO_START_IN_POOL = timedelta(seconds=20)
from flows.listen import listen
listen()
"""


@pytest.fixture
def pool(prefect: SyncPrefectClient) -> Iterator[None]:
    made = WorkPoolCreate(name=POOL, type="process", concurrency_limit=1)
    prefect.create_work_pool(made, overwrite=True)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--pool", POOL]
    subprocess.run([*command, "--name", "create-batches"], cwd=ROOT, check=True)
    yield
    prefect.delete_work_pool(POOL)


def worker(log: IO[bytes]) -> AbstractContextManager[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    return child(command, {"PREFECT_WORKER_QUERY_SECONDS": "1"}, log)


def listening(
    biospex: Biospex, log: IO[bytes], start_timeout: int
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    environment = {
        "TRIGGER_QUEUE_URL": biospex.trigger_queue_url,
        "MAX_IN_FLIGHT": "10",
        "START_TIMEOUT": str(start_timeout),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PYTHONPATH": str(ROOT),
    }
    return child([sys.executable, "-c", LISTEN], environment, log)


@pytest.mark.usefixtures("pool")
def test_exports_that_wait_longer_than_start_timeout_are_all_split(
    biospex: Biospex, workspace: Path, tmp_path: Path
) -> None:
    biospex.send(*(biospex.request(EXPORTS[0], downloadId=number) for number in range(12)))
    log = tmp_path / "log"
    with (
        log.open("wb") as output,
        (tmp_path / "worker").open("wb") as other,
        listening(biospex, output, START_TIMEOUT) as listener,
        worker(other),
    ):
        for _ in range(3):  # each waits three minutes
            with suppress(AssertionError):
                eventually(lambda: listener.poll() is not None or not sum(biospex.triggers()))
                break
        assert listener.poll() is None
        assert sum(biospex.triggers()) == 0
    assert biospex.statuses() == ["success"] * 12, log.read_text()


@pytest.mark.usefixtures("pool")
def test_a_run_whose_worker_died_before_its_start_is_started_again(
    prefect: SyncPrefectClient, biospex: Biospex, workspace: Path, tmp_path: Path
) -> None:
    request = biospex.request(EXPORTS[0])
    biospex.send(request)
    log = tmp_path / "log"
    with (
        log.open("wb") as output,
        (tmp_path / "worker").open("wb") as other,
        listening(biospex, output, 3600),
    ):
        with worker(other) as victim:
            run = run_named(prefect, f"download 512: {request['file']}", StateType.PENDING)
            os.killpg(victim.pid, signal.SIGKILL)
        if started := process_of(run.id):
            os.kill(started, signal.SIGKILL)
        assert prefect.read_flow_run(run.id).state_type == StateType.PENDING
        with worker(other):
            eventually(lambda: not sum(biospex.triggers()))
        states = [state.type for state in prefect.read_flow_run_states(run.id)]
    assert biospex.statuses() == ["success"]
    assert "did not start it" in log.read_text()
    assert states.count(StateType.RUNNING) == 1
