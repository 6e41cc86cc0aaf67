"""One listener runs: restarted when it dies, not when a person cancelled it; the last goes on."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from httpx import Response
from prefect import Flow, flow, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import Abort
from prefect.flow_engine import run_flow
from prefect.logging import disable_run_logger
from prefect.settings import get_current_settings
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Paused,
    Pending,
    Running,
)

from flows.listening import decision, one_listener
from flows.listening.clock import ServerClock
from flows.listening.one_listener import begin, is_taken_over, keep_one, restart_delay
from flows.support.outage import FEW_RETRIES
from flows.support.prefect_texts import SERVICE_STOPPED
from tests.helpers.processes import eventually

pytestmark = pytest.mark.usefixtures("prefect_api")

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER: State[Any] = AwaitingRetry(scheduled_time=datetime.now(UTC) + timedelta(days=1))


@pytest.mark.parametrize(
    ("ages", "seconds"),
    [([0], 10), ([20, 0], 20), ([90, 60, 30, 0], 80), ([5] * 100, 300), ([9000, 0], 10)],
    ids=["failed", "twice", "four times", "often", "long ago"],
)
def test_the_delay_doubles_with_each_failure_within_an_hour(
    ages: list[float], seconds: int
) -> None:
    """Whatever this machine's clock says: it is not asked."""
    begin = NOW - timedelta(hours=3)
    states: list[State[Any]] = [Cancelled(timestamp=begin), AwaitingRetry(timestamp=NOW)]
    states += [Failed(timestamp=NOW - timedelta(seconds=age)) for age in ages]
    assert restart_delay(states) == timedelta(seconds=seconds)


@pytest.mark.parametrize("end", [Running(), Pending(), Cancelled()], ids=lambda state: state.name)
def test_a_listener_whose_service_died_or_was_stopped_starts_again_at_once(end: State[Any]) -> None:
    earlier: list[State[Any]] = [
        Crashed(timestamp=NOW - timedelta(seconds=age)) for age in (10, 20, 30)
    ]
    assert restart_delay([]) == timedelta()
    assert restart_delay([*earlier, end]) == timedelta()


class Served:
    """A deployment that nobody serves."""

    def __init__(self, prefect: SyncPrefectClient) -> None:
        @flow(name=f"listener-{uuid4()}")
        def idle() -> None:
            pass

        made = cast(RunnerDeployment, idle.to_deployment("here")).apply()
        self.id = cast(UUID, made)
        self.prefect = prefect

    def keep_one(self, clock: ServerClock | None = None) -> None:
        keep_one(self.prefect, self.id, clock or ServerClock())

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
    served.keep_one()
    served.keep_one()
    assert [run.state_name for run in served.runs()] == ["Scheduled"]


@pytest.mark.parametrize(
    "end",
    [Failed(), Crashed(), Cancelled(message=SERVICE_STOPPED)],
    ids=["failed", "crashed", "its service was stopped"],
)
def test_a_listener_that_ended_starts_again(end: State[Any], served: Served) -> None:
    served.create(end)
    served.keep_one()
    assert [run.state_name for run in served.runs()] == ["AwaitingRetry"]


def test_a_listener_that_completed_is_followed_by_another(served: Served) -> None:
    served.create(Completed())
    served.keep_one()
    assert sorted(str(run.state_name) for run in served.runs()) == ["Completed", "Scheduled"]


@pytest.mark.parametrize(
    "state",
    [Cancelled(), Paused(), Running(), Pending(), LATER],
    ids=lambda state: str(state.name),
)
def test_a_listener_that_lives_or_that_a_person_stopped_is_left_alone(
    state: State[Any], served: Served
) -> None:
    served.create(state)
    served.keep_one()
    assert [run.state_name for run in served.runs()] == [state.name]


def test_a_listener_that_a_dead_service_took_starts_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.listening.decision.TIME_TO_START_HERE", timedelta(seconds=-1))
    served.create(Pending())
    served.keep_one()
    assert [run.state_name for run in served.runs()] == ["AwaitingRetry"]


def test_a_person_s_cancel_counts_although_the_run_is_older_than_others(served: Served) -> None:
    older = served.create(Pending())
    served.create(Completed())
    states: list[State[Any]] = [Running(), Cancelled()]
    for state in states:  # a person presses Retry, then Cancel
        served.prefect.set_flow_run_state(older, state, force=True)
    served.keep_one()
    assert sorted(str(run.state_name) for run in served.runs()) == ["Cancelled", "Completed"]


def test_a_listener_that_nothing_stops_counts_as_cancelled(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = served.create(Running())
    served.prefect.set_flow_run_state(run, Cancelling(), force=True)
    served.keep_one()
    assert [run.state_name for run in served.runs()] == ["Cancelling"]
    monkeypatch.setattr(one_listener, "TIME_TO_CANCEL", timedelta(seconds=-1))
    served.keep_one()
    served.keep_one()
    assert [run.state_name for run in served.runs()] == ["Cancelled"]


def test_a_listener_that_gives_no_sign_of_life_is_dead(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.create(Running())
    monkeypatch.setattr(one_listener, "NO_SIGN", timedelta(seconds=-1))
    served.keep_one()
    assert [run.state_name for run in served.runs()] == ["AwaitingRetry"]


def test_a_listener_gives_a_sign_of_life_over_http(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_listener, "SECONDS_BETWEEN_SIGNS", 0.1)
    run = served.create(Running())

    def updated() -> datetime:
        moment = served.prefect.read_flow_run(run).updated
        assert moment
        return moment

    before = updated()
    with one_listener.shows_life(run):
        first = eventually(lambda: updated() if updated() > before else None)
        eventually(lambda: updated() > first)


@pytest.mark.parametrize(("is_away", "state"), [(True, "Running"), (False, "AwaitingRetry")])
def test_a_listener_is_not_dead_because_prefect_was_away(
    is_away: bool, state: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_listener, "NO_SIGN", timedelta(seconds=5))
    served.create(Running())
    clock = ServerClock()
    served.keep_one(clock)
    monkeypatch.setattr(clock, "_ahead", timedelta(minutes=10))
    if is_away:
        clock.note(Response(200))  # the first answer since
    served.keep_one(clock)
    assert [run.state_name for run in served.runs()] == [state]


@pytest.mark.parametrize("off", [-600, 600], ids=["behind", "ahead"])
def test_a_listener_is_not_judged_by_the_clock_of_prefect_s_database(
    off: float, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_listener, "NO_SIGN", timedelta(seconds=5))
    run = served.prefect.read_flow_run(served.create(Running()))
    run.updated = cast(Any, datetime.now(UTC) + timedelta(seconds=off))
    clock = ServerClock()
    for seconds, listens in ((0, 1.0), (4, 1.0), (8, 2.0), (12, 2.0)):
        monkeypatch.setattr(clock, "_ahead", timedelta(seconds=seconds))
        run.labels = {"biospex.listens": listens}
        assert not one_listener.is_dead(run, clock)
    monkeypatch.setattr(clock, "_ahead", timedelta(seconds=15))
    assert one_listener.is_dead(run, clock)


def test_a_sign_of_life_is_repeated_if_prefect_refuses_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 20 % of errors, one of 600 spans of two minutes would have no sign of life."""
    monkeypatch.setattr(one_listener, "SECONDS_BETWEEN_SIGNS", 0.1)
    retries: list[int] = []

    def refuse(client: SyncPrefectClient, run: UUID, labels: Any) -> None:
        retries.append(get_current_settings().client.max_retries)

    monkeypatch.setattr(SyncPrefectClient, "update_flow_run_labels", refuse)
    with one_listener.shows_life(uuid4()):
        eventually(lambda: retries)
    assert retries[0] == FEW_RETRIES


@pytest.mark.parametrize(
    ("state", "then"),
    [
        (Running(), ["AwaitingRetry"]),
        (Paused(), ["AwaitingRetry"]),
        (Cancelling(), ["Cancelled", "Scheduled"]),
        (Cancelled(), ["Cancelled", "Scheduled"]),
    ],
    ids=["running", "paused", "cancelling", "cancelled"],
)
def test_a_new_service_restarts_the_listener_of_the_last_one_or_starts_another(
    state: State[Any], then: list[str], served: Served
) -> None:
    served.create(state)
    begin(served.prefect, served.id)
    assert sorted(str(run.state_name) for run in served.runs()) == then


@flow
def taken_over() -> bool:
    with get_client(sync_client=True) as client, disable_run_logger():
        return is_taken_over(client, ServerClock())


def two_runs(listener: Flow[[], bool], prefect: SyncPrefectClient) -> list[FlowRun]:
    """Two runs of one deployment, the second to be run here."""
    deployed = cast(RunnerDeployment, listener.to_deployment(f"{listener.name}-{uuid4()}")).apply()
    return [prefect.create_flow_run_from_deployment(cast(UUID, deployed)) for _ in range(2)]


@pytest.mark.parametrize("state", [Running(), Pending()], ids=lambda state: state.name)
def test_the_run_of_a_dead_listener_is_ended_by_the_next(
    state: State[Any], prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_listener, "NO_SIGN", timedelta(seconds=-1))
    monkeypatch.setattr(decision, "TIME_TO_START_HERE", timedelta(seconds=-1))
    dead, alive = two_runs(taken_over, prefect)
    prefect.set_flow_run_state(dead.id, state, force=True)
    assert run_flow(taken_over, flow_run=alive) is False
    ended = prefect.read_flow_run(dead.id)
    assert (ended.state_name, ended.state and ended.state.message) == (
        "Cancelled",
        "Died; another listener has taken over",
    )


@pytest.mark.parametrize(
    "state", [Paused(name="Suspended"), Cancelling(), Cancelled()], ids=lambda state: state.name
)
def test_a_listener_whose_run_is_not_running_stops(state: State[Any]) -> None:
    seen: list[object] = []

    @flow
    def put_aside() -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(runtime.flow_run.id), state, force=True)
            with pytest.raises(Abort) as raised:
                is_taken_over(client, ServerClock())
            seen.append(raised.type)

    with suppress(Exception):  # Prefect's engine has an opinion of its own on the end
        put_aside()
    assert seen == [Abort]


@pytest.mark.parametrize("state", [Running(), Pending()], ids=lambda state: state.name)
def test_a_listener_that_may_be_alive_or_about_to_start_is_left_alone(
    state: State[Any], prefect: SyncPrefectClient
) -> None:
    other, here = two_runs(taken_over, prefect)
    prefect.set_flow_run_state(other.id, state, force=True)
    assert run_flow(taken_over, flow_run=here) is False
    assert prefect.read_flow_run(other.id).state_name == state.name


def test_a_listener_that_started_later_takes_over(prefect: SyncPrefectClient) -> None:
    @flow
    def overtaken() -> bool:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(later.id, Running(), force=True)
            return is_taken_over(client, ServerClock())

    later, here = two_runs(overtaken, prefect)
    assert run_flow(overtaken, here) is True


def test_a_listener_that_was_restarted_later_stays_in_charge(prefect: SyncPrefectClient) -> None:
    """Prefect's ``start_time`` is that of the first attempt."""
    here, other = two_runs(taken_over, prefect)
    history: list[tuple[FlowRun, State[Any]]] = [
        (here, Running()),
        (here, AwaitingRetry()),
        (other, Running()),
    ]
    for run, state in history:
        prefect.set_flow_run_state(run.id, state, force=True)
    assert run_flow(taken_over, flow_run=prefect.read_flow_run(here.id)) is False


def test_a_listener_that_no_deployment_started_listens_alone() -> None:
    assert taken_over() is False
