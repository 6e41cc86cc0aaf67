"""One trigger, one answer, whatever is killed, stopped or set aside; one service sees all of it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import State, StateType
from prefect.states import Crashed, Suspended

from devtools.processes import process_of
from flows.support.attempt import failed_attempts
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex
from tests.helpers.processes import eventually, kill, run_named, serving

pytestmark = [pytest.mark.prefect_server("serve"), pytest.mark.soak]


@pytest.fixture(scope="module")
def biospex(aws: str) -> Biospex:
    return Biospex.new()


@pytest.fixture(scope="module")
def service(
    prefect_api: dict[str, str], biospex: Biospex, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[bytes]]:
    workspace = str(tmp_path_factory.mktemp("workspace"))
    with serving(biospex, VISIBILITY_TIMEOUT="30", TMPDIR=workspace, EFS_PATH=workspace) as server:
        yield server


@pytest.fixture(autouse=True)
def survives(service: subprocess.Popen[bytes], biospex: Biospex) -> Iterator[None]:
    """The service goes through each test, which begins without batches."""
    for file in biospex.batches():
        biospex.delete_batch(file)
    yield
    assert service.poll() is None


def test_killed_processes_start_again_and_send_one_callback(
    prefect: SyncPrefectClient, biospex: Biospex
) -> None:
    biospex.send(biospex.request(EXPORTS[0], downloadId="killed"))
    name = f"download killed: {EXPORTS[0].name}"
    export = run_named(prefect, name, StateType.RUNNING)
    kill(export.id)
    listening = run_named(prefect, "listen for exports", StateType.RUNNING)
    kill(listening.id)
    eventually(lambda: not sum(biospex.triggers()))
    assert biospex.statuses() == ["success"]
    ends = failed_attempts(prefect.read_flow_run_states(export.id))
    assert ends[0].name == "Crashed"
    of_the_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[export.id]))
    start = "Attempt 1 ended Crashed: "
    eventually(
        lambda: any(line.message.startswith(start) for line in prefect.read_logs(of_the_run))
    )
    assert prefect.read_flow_run(listening.id).run_count == listening.run_count + 1


def test_a_superseded_attempt_sends_no_callback(
    prefect: SyncPrefectClient, biospex: Biospex
) -> None:
    biospex.send(biospex.request(EXPORTS[0], downloadId="stopped"))
    export = run_named(prefect, f"download stopped: {EXPORTS[0].name}", StateType.RUNNING)
    process = cast(int, process_of(export.id))
    os.kill(process, signal.SIGSTOP)
    prefect.set_flow_run_state(export.id, Crashed(message="Out of reach"), force=True)
    # As another task of a pool would; the service itself waits for the process that it has.
    elsewhere = [sys.executable, "-m", "prefect", "flow-run", "execute", str(export.id)]
    assert subprocess.run(elsewhere).returncode == 0
    os.kill(process, signal.SIGCONT)
    eventually(lambda: process_of(export.id) is None)
    assert biospex.statuses() == ["success"]
    assert prefect.read_flow_run(export.id).state_name == "Completed"


def test_the_later_of_two_listeners_takes_over(prefect: SyncPrefectClient) -> None:
    first = run_named(prefect, "listen for exports", StateType.RUNNING)
    second = prefect.create_flow_run_from_deployment(cast(UUID, first.deployment_id))
    eventually(lambda: prefect.read_flow_run(first.id).state_type == StateType.COMPLETED)
    assert prefect.read_flow_run(second.id).state_type == StateType.RUNNING


def test_a_suspended_listener_starts_no_export_until_it_is_resumed(
    prefect: SyncPrefectClient, biospex: Biospex
) -> None:
    listening = run_named(prefect, "listen for exports", StateType.RUNNING)
    process = eventually(lambda: process_of(listening.id))
    suspended: State[Any] = Suspended(timeout_seconds=3600)
    prefect.set_flow_run_state(listening.id, suspended)
    eventually(lambda: not Path(f"/proc/{process}").exists())
    biospex.send(biospex.request(EXPORTS[0]))
    assert prefect.read_flow_run(listening.id).state_name == "Suspended"
    assert biospex.triggers() == (1, 0)
    prefect.resume_flow_run(listening.id)
    eventually(lambda: not sum(biospex.triggers()))
    assert biospex.statuses() == ["success"]
