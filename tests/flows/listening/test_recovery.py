"""Reading a run's history and setting its state, on a real Prefect server."""

import time
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.deployments.runner import RunnerDeployment
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Completed,
    Crashed,
    Failed,
    Pending,
    Running,
    Scheduled,
)

from flows.listening import decision, recovery
from flows.listening.clock import ServerClock
from flows.support.attempt import failed_attempts, is_superseded
from splitter.messages import Failure, Result


@flow
def nothing() -> None:
    pass


@pytest.fixture
def run(prefect: SyncPrefectClient) -> FlowRun:
    """A run of a deployment that nobody serves."""
    deployment = cast(RunnerDeployment, nothing.to_deployment(f"unserved-{uuid4()}")).apply()
    return prefect.create_flow_run_from_deployment(cast(UUID, deployment))


class Heartbeats:
    """Heartbeats of runs of which none is missed."""

    def have_stopped(self, run: FlowRun) -> bool:
        return False


def observe(prefect: SyncPrefectClient, run: FlowRun | None) -> decision.Run | None:
    return recovery.observe(prefect, run, cast(Any, Heartbeats()), ServerClock())


@pytest.mark.parametrize(
    ("history", "attempts", "failed_starts"),
    [
        ([Running(), Crashed(), AwaitingRetry(), Pending(), Crashed()], 1, 1),
        ([Running(), Crashed(), Crashed()], 1, 0),
        ([Pending(), Crashed(), Crashed(), AwaitingRetry(), Pending(), Crashed()], 0, 2),
        ([Running(), Crashed(), AwaitingRetry(), Pending(), Running()], 1, 0),
    ],
    ids=["one and one", "an end that two processes report", "two starts", "runs again"],
)
def test_an_attempt_that_began_counts_and_a_failed_start_does_not(
    history: list[State[Any]],
    attempts: int,
    failed_starts: int,
    run: FlowRun,
    prefect: SyncPrefectClient,
) -> None:
    for state in history:
        prefect.set_flow_run_state(run.id, state, force=True)
    seen = observe(prefect, prefect.read_flow_run(run.id))
    assert seen is not None
    assert (seen.attempts, seen.failed_starts) == (attempts, failed_starts)


def test_a_deleted_run_has_no_facts(prefect: SyncPrefectClient) -> None:
    assert observe(prefect, None) is None


@pytest.mark.parametrize(
    ("states", "ends"),
    [
        ([], []),
        ([Scheduled(), Pending(), Crashed()], []),
        ([Running(), Failed()], ["Failed"]),
        ([Running(), Crashed(), Crashed()], ["Crashed"]),
        ([Running(), Crashed(), AwaitingRetry(), Running(), Failed()], ["Crashed", "Failed"]),
        ([Running(), Cancelled(), Pending(), Crashed()], ["Cancelled"]),
        ([Running(), Completed()], []),
        ([Running(), AwaitingRetry(), Running()], []),
    ],
)
def test_an_attempt_is_one_whose_code_had_begun(states: list[State[Any]], ends: list[str]) -> None:
    assert [state.name for state in failed_attempts(states)] == ends


@pytest.mark.parametrize(
    ("others", "others_run", "has_progressed"),
    [
        ([], False, False),
        ([Running()], True, True),
        ([Running(), Completed()], False, True),
        ([Pending(), Crashed()], False, False),
    ],
    ids=["no others", "one runs", "one has run", "one never began"],
)
def test_a_run_is_not_stalled_while_others_of_its_deployment_run(
    others: list[State[Any]],
    others_run: bool,
    has_progressed: bool,
    run: FlowRun,
    prefect: SyncPrefectClient,
) -> None:
    assert run.deployment_id
    time.sleep(0.5)
    other = prefect.create_flow_run_from_deployment(run.deployment_id)
    for state in others:
        prefect.set_flow_run_state(other.id, state, force=True)
    seen = observe(prefect, prefect.read_flow_run(run.id))
    assert seen
    assert (seen.stalled == timedelta()) is others_run
    assert (seen.age - seen.stalled > timedelta(seconds=0.4)) is has_progressed


def test_a_run_is_answered_once_the_callback_is_noted_on_it(
    run: FlowRun, prefect: SyncPrefectClient
) -> None:
    prefect.set_flow_run_state(run.id, Failed(), force=True)

    def is_answered() -> bool:
        seen = observe(prefect, prefect.read_flow_run(run.id))
        return seen is not None and seen.is_answered

    assert recovery.callback_of(prefect, run) is None
    assert not is_answered()
    recovery.note_callback(prefect, run, Failure(download_id=7, error="The first."))
    assert is_answered()
    recovery.note_callback(prefect, run, Result(download_id=7, batch_files=["a-part1.zip"]))
    assert "a-part1.zip" in str(recovery.callback_of(prefect, run))


def test_a_run_is_ended_with_the_reason(run: FlowRun, prefect: SyncPrefectClient) -> None:
    prefect.set_flow_run_state(run.id, Running(), force=True)
    recovery.force_cancelled(prefect, run, "Why it is.")
    state = prefect.read_flow_run(run.id).state
    assert state is not None
    assert (state.name, state.message) == ("Cancelled", "Why it is.")


@pytest.mark.usefixtures("prefect_api")
def test_a_run_with_a_newer_attempt_is_superseded() -> None:
    seen: list[bool] = []

    @flow
    def attempt() -> None:
        context = FlowRunContext.get()
        assert context and context.flow_run
        mine = context.flow_run
        again = mine.model_copy(update={"run_count": mine.run_count + 1})
        stopped = mine.model_copy(update={"state_type": Cancelled().type})
        seen.extend(is_superseded(one) for one in (mine, again, stopped))

    attempt()
    assert seen == [False, True, True]
