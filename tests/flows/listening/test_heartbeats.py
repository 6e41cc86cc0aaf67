"""Heartbeats: a run is judged by their arrival at Prefect, and only while one's own arrive."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from httpx import Response
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import emit_event
from prefect.events.schemas.events import ReceivedEvent
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Pending, Running

from flows.listening.clock import LONGEST_PAUSE, ServerClock
from flows.listening.heartbeats import (
    FREQUENCY,
    LARGEST_SKEW,
    Heartbeats,
    check_frequency,
    last_arrival,
)
from splitter.errors import SetupError
from tests.helpers.processes import eventually

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
OWN = uuid4()


def seconds_ago(*ages: float) -> list[datetime]:
    return [NOW - timedelta(seconds=age) for age in ages]


@dataclass
class Events:
    """Prefect's API, as far as it gives heartbeats; pages of two.

    Attributes:
        arrivals: of each run.
        skew: by how much the clock of the senders is ahead.
    """

    arrivals: dict[UUID, list[datetime]]
    skew: timedelta = timedelta()
    following: list[ReceivedEvent] = field(default_factory=list)

    def read_events(self, which: Any, limit: int) -> Any:
        [name] = which.resource.id
        run = UUID(name.rpartition(".")[2])
        events = [
            ReceivedEvent.model_validate(
                {
                    "event": "prefect.flow-run.heartbeat",
                    "resource": {"prefect.resource.id": name},
                    "occurred": arrival + self.skew,
                    "received": arrival,
                }
            )
            for arrival in self.arrivals.get(run, [])
        ]
        self.following = events[2:] if run != OWN else []
        return self._page(events[:2] if run != OWN else events)

    def read_events_page(self, url: str) -> Any:
        page, self.following = self.following[:2], self.following[2:]
        return self._page(page)

    def _page(self, events: list[ReceivedEvent]) -> Any:
        more = "http://prefect.invalid/next" if self.following else None
        return type("Page", (), {"events": events, "next_page": more})


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    settings = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: FREQUENCY}  # as a deployed listener has them
    with disable_run_logger(), temporary_settings(settings):
        yield


def a_run(age: float) -> FlowRun:
    state: State[Any] = Running(timestamp=NOW - timedelta(seconds=age))
    return FlowRun(id=uuid4(), flow_id=uuid4(), state=state)


REGULAR = seconds_ago(0, 30, 60, 90, 120)


@pytest.mark.parametrize(
    ("own", "theirs", "age", "have_stopped"),
    [
        (REGULAR, seconds_ago(5), 300, False),
        (REGULAR, seconds_ago(89), 300, False),
        (REGULAR, seconds_ago(100), 300, True),
        (REGULAR, [], 300, True),
        (REGULAR, [], 60, False),
        (REGULAR, seconds_ago(500, 510, 520), 300, True),
        (REGULAR, [*seconds_ago(500, 510, 520), NOW], 300, False),
        ([], [], 300, False),
        (seconds_ago(0, 30, 200, 230), [], 300, False),
        (seconds_ago(0, 0, 0, 0, 0), [], 300, False),
    ],
    ids=[
        "alive",
        "late",
        "silent",
        "never heard of",
        "young",
        "heard of before this attempt only",
        "behind those of an earlier attempt",
        "a websocket that is refused",
        "after an outage",
        "after an outage, own heartbeats kept back",
    ],
)
def test_whether_the_heartbeats_of_a_run_have_stopped(
    own: list[datetime], theirs: list[datetime], age: float, have_stopped: bool
) -> None:
    run = a_run(age)
    events = cast(SyncPrefectClient, Events({OWN: own, run.id: theirs}))
    assert Heartbeats(events, OWN, ServerClock()).have_stopped(run) is have_stopped


def test_a_listener_with_fewer_heartbeats_judges_after_three_of_them() -> None:
    """Without a deployment it sends as many as Prefect says, one in 180 s."""
    own = seconds_ago(0, 180, 360, 540, 720)
    alive, dead = a_run(900), a_run(900)
    arrivals = {OWN: own, alive.id: seconds_ago(500), dead.id: seconds_ago(600)}
    clock = ServerClock()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 180}):
        heartbeats = Heartbeats(cast(SyncPrefectClient, Events(arrivals)), OWN, clock)
    assert [heartbeats.have_stopped(run) for run in (alive, dead)] == [False, True]


def test_a_listener_with_fewer_heartbeats_does_not_warn_between_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {OWN: [datetime.now(UTC) - timedelta(seconds=179)]}
    clock = ServerClock()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 180}):
        heartbeats = Heartbeats(cast(SyncPrefectClient, Events(own)), OWN, clock)
    monkeypatch.setattr("flows.listening.heartbeats.create_markdown_artifact", lambda *_, **__: 0)
    heartbeats.warn_of_silence()
    assert not heartbeats._is_silent


def test_a_silent_run_of_a_pool_is_judged_once_another_was_heard() -> None:
    run, other = a_run(300), a_run(300)
    run.work_pool_name = "pool"
    events = Events({OWN: REGULAR, other.id: seconds_ago(5)})
    heartbeats = Heartbeats(cast(SyncPrefectClient, events), OWN, ServerClock())
    assert [heartbeats.have_stopped(each) for each in (run, other, run)] == [False, False, True]


def test_a_run_that_is_not_running_is_not_judged() -> None:
    run = FlowRun(id=uuid4(), flow_id=uuid4(), state=Pending(timestamp=NOW - timedelta(hours=1)))
    events = cast(SyncPrefectClient, Events({OWN: REGULAR}))
    assert not Heartbeats(events, OWN, ServerClock()).have_stopped(run)


def test_a_listener_without_heartbeats_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    events, clock = Events({}), ServerClock()
    heartbeats = Heartbeats(cast(SyncPrefectClient, events), OWN, clock)
    monkeypatch.setattr(heartbeats, "SECONDS_BETWEEN_READS", 0)
    monkeypatch.setattr("flows.listening.heartbeats.create_markdown_artifact", lambda *_, **__: 0)
    monkeypatch.setattr(heartbeats._logger, "warning", lambda _, line: warnings.append(line))
    clock.note(Response(200))  # after an outage they may be away for a while
    heartbeats.warn_of_silence()
    assert warnings == []
    monkeypatch.setattr(clock, "_answers_since", NOW)
    for _ in range(2):
        heartbeats.warn_of_silence()
    assert len(warnings) == 1
    events.arrivals[OWN] = [datetime.now(UTC)]
    heartbeats.warn_of_silence()
    events.arrivals[OWN] = []
    heartbeats.warn_of_silence()
    assert len(warnings) == 2


@pytest.mark.parametrize("minutes", [-10, 10])
def test_the_clock_of_a_runs_machine_does_not_matter(minutes: int) -> None:
    run = a_run(300)
    events = Events({OWN: REGULAR, run.id: seconds_ago(5)}, skew=timedelta(minutes=minutes))
    heartbeats = Heartbeats(cast(SyncPrefectClient, events), OWN, ServerClock())
    assert not heartbeats.have_stopped(run)


def test_the_clock_of_the_api_is_read_from_its_answers() -> None:
    clock = ServerClock()
    ahead = datetime.now(UTC) + timedelta(minutes=10)
    clock.note(Response(200, headers={"Date": format_datetime(ahead, usegmt=True)}))
    assert abs(clock.now() - ahead) < timedelta(seconds=2)
    assert clock.skew > LARGEST_SKEW
    for date in ("", "today", f"{format_datetime(NOW)}, {format_datetime(NOW)}"):
        clock.note(Response(200, headers={"Date": date}))
    clock.note(Response(200))
    assert clock.skew > LARGEST_SKEW


def test_the_time_of_an_outage_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, long_ago = ServerClock(), datetime.now(UTC) - timedelta(hours=1)
    clock.note(Response(200))
    assert clock.elapsed(long_ago) < timedelta(seconds=5)  # nothing is known of the time before
    monkeypatch.setattr(clock, "_answers_since", long_ago)
    for status in (200, 502):
        clock.note(Response(status))
    assert clock.elapsed(long_ago) >= timedelta(hours=1)
    monkeypatch.setattr(clock, "_answered_at", time.monotonic() - 2 * LONGEST_PAUSE)
    clock.note(Response(502))
    assert clock.elapsed(long_ago) >= timedelta(hours=1)
    clock.note(Response(200))
    assert clock.elapsed(long_ago) < timedelta(seconds=5)


@pytest.mark.parametrize("frequency", [180, None])
def test_a_listener_that_sends_too_few_heartbeats_refuses_to_run(frequency: int | None) -> None:
    with (
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: frequency}),
        pytest.raises(SetupError, match="PREFECT_FLOWS_HEARTBEAT_FREQUENCY"),
    ):
        check_frequency()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: FREQUENCY}):
        check_frequency()


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("minutes", [-10, 0, 10])
def test_prefect_records_when_a_heartbeat_arrived(minutes: int, prefect: SyncPrefectClient) -> None:
    run, began = uuid4(), datetime.now(UTC)
    emit_event(
        "prefect.flow-run.heartbeat",
        {"prefect.resource.id": f"prefect.flow-run.{run}"},
        occurred=began + timedelta(minutes=minutes),
    )
    eventually(lambda: last_arrival(prefect, run, began) is not None)
    assert last_arrival(prefect, run, datetime.now(UTC) + timedelta(minutes=1)) is None
