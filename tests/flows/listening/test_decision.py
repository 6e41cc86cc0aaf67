"""The table of docs/reliability.md, row by row, without a server."""

from datetime import timedelta
from typing import Any

import pytest
from prefect.client.schemas.objects import State
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
    Scheduled,
)

from flows.listening.decision import (
    NO_HEARTBEATS,
    REFUSED,
    TIME_TO_CANCEL,
    TIME_TO_START_HERE,
    TIME_TO_STOP,
    Acknowledge,
    Cancel,
    Decision,
    Extend,
    Fail,
    MarkCrashed,
    Retry,
    Run,
    decide,
)
from flows.support.prefect_texts import SERVICE_STOPPED
from splitter.settings import Settings

SETTINGS = Settings(max_attempts=3, start_timeout=3600, run_timeout=6 * 3600)
LONG = timedelta(days=1)
SHORT = timedelta(seconds=5)

Facts = dict[str, Any]

TABLE: dict[str, tuple[State[Any], Facts, type[Decision]]] = {
    # it goes on
    "scheduled": (Scheduled(), {}, Extend),
    "waits for its next attempt": (AwaitingRetry(), {"attempts": 1}, Extend),
    "waits for a machine": (Pending(), {"age": SHORT}, Extend),
    "runs": (Running(), {"age": SHORT}, Extend),
    "is being cancelled": (Cancelling(), {"age": SHORT}, Extend),
    "paused": (Paused(), {"age": SHORT}, Extend),
    "waits in line for a limit": (
        Scheduled(name="AwaitingConcurrencySlot"),
        {"stalled": LONG},
        Extend,
    ),
    "late, but others of its pool run": (Scheduled(name="Late"), {"age": LONG}, Extend),
    "late, just after another of its pool ended": (
        Scheduled(name="Late"),
        {"age": LONG, "stalled": SHORT},
        Extend,
    ),
    "taken after it waited for long": (Pending(), {"stalled": LONG}, Extend),
    "slow to start on an overloaded machine": (
        Pending(),
        {"has_pool": False, "age": TIME_TO_START_HERE * 2, "load": 3.0},
        Extend,
    ),
    "never started on a machine that has been overloaded for long": (
        Pending(),
        {"has_pool": False, "age": TIME_TO_START_HERE * 5.1, "load": 20.0},
        MarkCrashed,
    ),
    # its callback is sent
    "completed": (Completed(), {}, Acknowledge),
    "completed with warnings": (Completed(name="Completed with warnings"), {}, Acknowledge),
    "failed, answered": (Failed(), {"is_answered": True, "attempts": 1}, Acknowledge),
    "crashed after its answer": (Crashed(), {"is_answered": True, "attempts": 1}, Acknowledge),
    "cancelled after its answer": (Cancelled(), {"is_answered": True}, Acknowledge),
    "taken by a worker that died": (
        Pending(),
        {"has_pool": True, "age": timedelta(minutes=16)},
        MarkCrashed,
    ),
    # it is tried again
    "crashed": (Crashed(), {"attempts": 1}, Retry),
    "failed without an answer": (Failed(), {"attempts": 2}, Retry),
    "its service was stopped": (Cancelled(message=SERVICE_STOPPED), {"attempts": 1}, Retry),
    "no capacity": (Crashed(), {"failed_starts": 7, "stalled": SHORT}, Retry),
    "no capacity for the last attempt": (
        Crashed(),
        {"attempts": 3, "failed_starts": 1, "stalled": SHORT},
        Retry,
    ),
    "no capacity for long, but others of its pool run": (
        Crashed(),
        {"failed_starts": 20, "age": LONG},
        Retry,
    ),
    # its process is dead
    "no heartbeats": (Running(), {"is_silent": True}, MarkCrashed),
    "taken by a service, not started": (
        Pending(),
        {"has_pool": False, "age": TIME_TO_START_HERE * 2},
        MarkCrashed,
    ),
    # it takes too long
    "runs for ever": (Running(), {"age": LONG}, Cancel),
    # nobody else will answer
    "refused": (Failed(name=REFUSED, message="No."), {"failed_starts": 1}, Fail),
    "cancelled": (Cancelled(), {}, Fail),
    "cancelled, but nothing stops it": (Cancelling(), {"age": TIME_TO_CANCEL * 2}, Fail),
    "crashed too often": (Crashed(), {"attempts": 3}, Fail),
    "failed too often": (Failed(message="A sentence."), {"attempts": 3}, Fail),
    "scheduled for too long": (Scheduled(), {"stalled": LONG}, Fail),
    "paused for too long, though others run": (Paused(), {"age": LONG}, Fail),
    "no capacity for too long": (Crashed(), {"failed_starts": 20, "stalled": LONG}, Fail),
}


@pytest.mark.parametrize(("state", "facts", "wanted"), TABLE.values(), ids=TABLE.keys())
def test_the_decision_about_a_run(state: State[Any], facts: Facts, wanted: type[Decision]) -> None:
    assert type(decide(Run(state, **facts), SETTINGS)) is wanted


def test_a_run_that_was_deleted_is_answered() -> None:
    decision = decide(None, SETTINGS)
    assert isinstance(decision, Fail)
    assert "the run that makes them was deleted" in decision.sentence


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (Run(Failed(name=REFUSED, message="No."), failed_starts=1), "No."),
        (Run(Failed(message="The flow's own."), attempts=3), "The flow's own."),
        (
            Run(Failed(message="Flow run encountered an exception: X"), attempts=3),
            "ended Failed too often",
        ),
        (Run(Crashed(message="Process exited with -9"), attempts=3), "ended Crashed too often"),
    ],
)
def test_the_failure_has_the_flows_sentence_and_no_text_of_prefect(run: Run, sentence: str) -> None:
    decision = decide(run, SETTINGS)
    assert isinstance(decision, Fail)
    assert sentence in decision.sentence
    assert "exception" not in decision.sentence
    assert "-9" not in decision.sentence


@pytest.mark.parametrize(
    ("facts", "seconds"),
    [
        ({"attempts": 1}, 15),
        ({"attempts": 2}, 60),
        ({"failed_starts": 1}, 15),
        ({"failed_starts": 9}, 300),
        ({"failed_starts": 30}, 300),  # after two hours in which others of its pool run
    ],
)
def test_each_delay_is_four_times_the_last_up_to_five_minutes(facts: Facts, seconds: int) -> None:
    decision = decide(Run(Crashed(message="why"), **facts), SETTINGS)
    assert isinstance(decision, Retry)
    assert decision.delay == timedelta(seconds=seconds)
    assert "why" in decision.reason


@pytest.mark.parametrize(
    ("has_pool", "delay"), [(True, TIME_TO_STOP), (False, timedelta(seconds=15))]
)
def test_a_container_has_time_to_stop_before_the_next_one_starts(
    has_pool: bool, delay: timedelta
) -> None:
    decision = decide(Run(Crashed(message=NO_HEARTBEATS), has_pool=has_pool, attempts=1), SETTINGS)
    assert isinstance(decision, Retry)
    assert decision.delay == delay


def test_the_reason_for_waiting_names_the_limit_or_the_other_runs() -> None:
    run = Run(Scheduled(name="Late"))
    assert decide(run, SETTINGS) == Extend("the other runs of its pool or service")
