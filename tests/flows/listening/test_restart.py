"""One listener runs: restarted when it dies, but not when a person cancelled it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from httpx import Response
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments.runner import RunnerDeployment
from prefect.states import (
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Paused,
    Pending,
    Running,
    Scheduled,
)

from flows.listening import heartbeats, restart
from flows.listening.clock import ServerClock
from flows.listening.restart import Upkeep, restart_delay
from flows.support.prefect_texts import SERVICE_STOPPED
from tests.helpers.processes import eventually

pytestmark = pytest.mark.usefixtures("prefect_api")

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float, state: State[Any]) -> State[Any]:
    return state.model_copy(update={"timestamp": NOW + timedelta(seconds=seconds)})


def deaths(count: int, life: float) -> list[State[Any]]:
    """The states of a run that died so often, after so many seconds each time."""
    return [
        at(number * 10_000 + moment, state)
        for number in range(count)
        for moment, state in ((0, Running()), (life, Failed()))
    ]


@pytest.mark.parametrize(
    ("count", "life", "seconds"), [(1, 5, 10), (2, 5, 20), (4, 5, 80), (30, 5, 300), (9, 400, 10)]
)
def test_the_delay_doubles_with_each_early_death(count: int, life: float, seconds: int) -> None:
    assert restart_delay(deaths(count, life)) == timedelta(seconds=seconds)


class Served:
    """A deployment that nobody serves, and its upkeep."""

    def __init__(self, prefect: SyncPrefectClient) -> None:
        @flow(name=f"listener-{uuid4()}")
        def idle() -> None:
            pass

        made = cast(RunnerDeployment, idle.to_deployment("here")).apply()
        self.id = cast(UUID, made)
        self.prefect = prefect
        self.upkeep = Upkeep(prefect, self.id, ServerClock())

    def create(self, state: State[Any]) -> UUID:
        run = self.prefect.create_flow_run_from_deployment(self.id)
        self.prefect.set_flow_run_state(run.id, state, force=True)
        return run.id

    def runs(self) -> list[FlowRun]:
        here = DeploymentFilter(id=DeploymentFilterId(any_=[self.id]))
        return self.prefect.read_flow_runs(deployment_filter=here)


@pytest.fixture
def served(prefect: SyncPrefectClient) -> Iterator[Served]:
    yield Served(prefect)


def test_without_a_listener_one_is_created(served: Served) -> None:
    served.upkeep.look()
    served.upkeep.look()
    assert [run.state_name for run in served.runs()] == ["Scheduled"]


@pytest.mark.parametrize(
    "end",
    [Failed(), Crashed(), Cancelled(message=SERVICE_STOPPED)],
    ids=["failed", "crashed", "its service was stopped"],
)
def test_a_listener_that_ended_starts_again(end: State[Any], served: Served) -> None:
    served.create(end)
    served.upkeep.look()
    assert [run.state_name for run in served.runs()] == ["AwaitingRetry"]


def test_a_listener_that_completed_is_followed_by_another(served: Served) -> None:
    served.create(Completed())
    served.upkeep.look()
    assert sorted(str(run.state_name) for run in served.runs()) == ["Completed", "Scheduled"]


@pytest.mark.parametrize(
    "state",
    [Cancelled(), Paused(), Running(), Pending(), Scheduled()],
    ids=lambda state: str(state.name),
)
def test_a_listener_that_lives_or_that_a_person_stopped_is_left_alone(
    state: State[Any], served: Served
) -> None:
    served.create(state)
    served.upkeep.look()
    assert [run.state_name for run in served.runs()] == [state.name]


def test_a_listener_that_a_dead_service_took_starts_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.listening.decision.TIME_TO_START_HERE", timedelta(seconds=-1))
    served.create(Pending())
    served.upkeep.look()
    assert [run.state_name for run in served.runs()] == ["AwaitingRetry"]


def test_a_person_s_cancel_counts_although_the_run_is_older_than_others(served: Served) -> None:
    older = served.create(Pending())
    served.create(Completed())
    states: list[State[Any]] = [Running(), Cancelled()]
    for state in states:  # a person presses Retry, then Cancel
        served.prefect.set_flow_run_state(older, state, force=True)
    served.upkeep.look()
    assert sorted(str(run.state_name) for run in served.runs()) == ["Cancelled", "Completed"]


def test_a_listener_that_nothing_stops_counts_as_cancelled(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = served.create(Running())
    served.prefect.set_flow_run_state(run, Cancelling(), force=True)
    served.upkeep.look()
    assert [run.state_name for run in served.runs()] == ["Cancelling"]
    monkeypatch.setattr(restart, "TIME_TO_CANCEL", timedelta(seconds=-1))
    served.upkeep.look()
    served.upkeep.look()
    assert [run.state_name for run in served.runs()] == ["Cancelled"]


def test_a_new_service_listens_although_the_last_one_ended_in_a_cancel(
    served: Served,
) -> None:
    run = served.create(Running())
    served.prefect.set_flow_run_state(run, Cancelling(), force=True)
    served.upkeep.begin()
    assert sorted(str(run.state_name) for run in served.runs()) == ["Cancelled", "Scheduled"]


def test_a_listener_without_heartbeats_that_gives_no_other_sign_is_dead(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.create(Running())
    monkeypatch.setattr(restart, "NO_SIGN", timedelta(seconds=-1))
    served.upkeep.look()
    assert [run.state_name for run in served.runs()] == ["AwaitingRetry"]


def test_a_listener_gives_a_sign_of_life_over_http(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "SECONDS_BETWEEN_SIGNS", 0.1)
    run = served.create(Running())

    def updated() -> datetime:
        moment = served.prefect.read_flow_run(run).updated
        assert moment
        return moment

    before = updated()
    with heartbeats.shows_life(run):
        first = eventually(lambda: updated() if updated() > before else None)
        eventually(lambda: updated() > first)


@pytest.mark.parametrize(("is_away", "state"), [(True, "Running"), (False, "AwaitingRetry")])
def test_a_listener_is_not_dead_because_prefect_was_away(
    is_away: bool, state: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeat = SimpleNamespace(received=datetime.now(UTC) - timedelta(minutes=10))
    monkeypatch.setattr(restart, "last_arrival", lambda *_: heartbeat)
    served.create(Running())
    clock = ServerClock()
    if is_away:
        clock.note(Response(200))  # the first answer since
    Upkeep(served.prefect, served.id, clock).look()
    assert [run.state_name for run in served.runs()] == [state]


def test_a_new_service_restarts_the_listener_of_the_last_one(served: Served) -> None:
    served.create(Running())
    served.upkeep.begin()
    assert [run.state_name for run in served.runs()] == ["AwaitingRetry"]
