"""Which of several listeners goes on, against a real Prefect server."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect import Flow, flow, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments.runner import RunnerDeployment
from prefect.flow_engine import run_flow
from prefect.logging import disable_run_logger
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Paused, Pending, Running

from flows.listening.clock import ServerClock
from flows.listening.decision import MISSED_HEARTBEATS
from flows.listening.takeover import Standing, Takeover

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with disable_run_logger():
        yield


class Heartbeats:
    """Heartbeats of runs that have all missed as many."""

    count = 0.0

    def missed(self, run: FlowRun) -> float:
        return self.count


def takeover(client: SyncPrefectClient) -> Takeover:
    return Takeover(client, cast(Any, Heartbeats()), ServerClock())


@flow
def standing() -> Standing:
    with get_client(sync_client=True) as client:
        return takeover(client).standing()


def runs_of(listener: Flow[[], Standing], prefect: SyncPrefectClient) -> list[FlowRun]:
    """Two runs of one deployment, the second to be run here."""
    deployed = cast(RunnerDeployment, listener.to_deployment(f"{listener.name}-{uuid4()}")).apply()
    return [prefect.create_flow_run_from_deployment(cast(UUID, deployed)) for _ in range(2)]


@pytest.mark.parametrize("state", [Running(), Pending()], ids=lambda state: state.name)
def test_the_run_of_a_dead_listener_is_ended_by_the_next(
    state: State[Any], prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.listening.takeover.SECONDS_BETWEEN_LOOKS", 0)
    monkeypatch.setattr("flows.listening.takeover.TIME_TO_START", timedelta())
    monkeypatch.setattr(Heartbeats, "count", MISSED_HEARTBEATS)
    dead, alive = runs_of(standing, prefect)
    prefect.set_flow_run_state(dead.id, state, force=True)
    assert run_flow(standing, flow_run=alive) is Standing.LISTENS
    ended = prefect.read_flow_run(dead.id)
    assert (ended.state_name, ended.state and ended.state.message) == (
        "Cancelled",
        "Died; another listener has taken over",
    )


@pytest.mark.parametrize(
    "state", [Paused(name="Suspended"), Cancelling(), Cancelled()], ids=lambda state: state.name
)
def test_a_listener_whose_run_is_not_running_stops(state: State[Any]) -> None:
    seen = []

    @flow
    def put_aside() -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(runtime.flow_run.id), state, force=True)
            seen.append(takeover(client).standing())

    with suppress(Exception):  # Prefect's engine has an opinion of its own on the end
        put_aside()
    assert seen == [Standing.NOT_RUNNING]


@pytest.mark.parametrize("state", [Running(), Pending()], ids=lambda state: state.name)
def test_a_listener_that_may_be_alive_or_about_to_start_is_left_alone(
    state: State[Any], prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.listening.takeover.SECONDS_BETWEEN_LOOKS", 0)
    other, here = runs_of(standing, prefect)
    prefect.set_flow_run_state(other.id, state, force=True)
    assert run_flow(standing, flow_run=here) is Standing.LISTENS
    assert prefect.read_flow_run(other.id).state_name == state.name


def test_a_listener_that_started_later_takes_over(prefect: SyncPrefectClient) -> None:
    @flow
    def overtaken() -> Standing:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(later.id, Running(), force=True)
            return takeover(client).standing()

    later, here = runs_of(overtaken, prefect)
    assert run_flow(overtaken, here) is Standing.TAKEN_OVER


def test_a_listener_that_was_restarted_later_stays_in_charge(prefect: SyncPrefectClient) -> None:
    """Prefect's ``start_time`` is that of the first attempt."""
    here, other = runs_of(standing, prefect)
    history: list[tuple[FlowRun, State[Any]]] = [
        (here, Running()),
        (here, AwaitingRetry()),
        (other, Running()),
    ]
    for run, state in history:
        prefect.set_flow_run_state(run.id, state, force=True)
    assert run_flow(standing, flow_run=prefect.read_flow_run(here.id)) is Standing.LISTENS


def test_a_listener_that_no_deployment_started_listens_alone() -> None:
    assert standing() is Standing.LISTENS
