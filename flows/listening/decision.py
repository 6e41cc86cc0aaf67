"""Decides what the listener does about a run of create-batches: one pure function.

The message is the lease of an export and the listener is its only owner. A run does its work and
reports how it ended; whether it is retried, given up or answered is decided here. The table in
docs/reliability.md has the same rows.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from prefect.client.schemas.objects import State

from flows.support.prefect_texts import EXCEPTION_OF_FLOW, IN_LINE, LATE, SERVICE_STOPPED
from splitter.settings import Settings

TIME_TO_START_HERE = timedelta(seconds=120)
"""The longest Pending time of a run that a service starts, without a work pool, on a machine that
is not overloaded. After that the service counts as dead; START_TIMEOUT is for a pool."""

LONGEST_LOAD = 5.0
"""The largest factor by which load lengthens that time; starts took a minute at a load of 17."""

TIME_TO_START_IN_POOL = timedelta(minutes=15)
"""The longest Pending time of a run of a work pool. Fargate needs up to five minutes; after fifteen
the worker counts as dead."""

TIME_TO_CANCEL = timedelta(minutes=5)
"""The longest Cancelling time of a run; ECS gives a task two minutes to stop."""

FIRST_DELAY = timedelta(seconds=15)
"""Before the second attempt; each further one waits four times as long."""

LONGEST_DELAY = timedelta(minutes=5)

TIME_TO_STOP = timedelta(minutes=3)
"""Before a run is started again whose container was stopped: longer than ECS needs to stop it, so
that the event of its end is not applied to the next attempt."""

NO_HEARTBEATS = "Its process has sent no heartbeats for too long"
"""Message of the state of a run that was marked crashed because its heartbeats stopped."""

CANCELLED = "the run that makes them was cancelled, by an operator or because it took too long"

REFUSED = "Refused"
"""State name of a run that was created only to show why a message is refused."""


@dataclass(frozen=True)
class Run:
    """The facts about a run at one moment.

    Attributes:
        state: its state in Prefect.
        has_pool: whether a work pool starts it, rather than a service beside the listener.
        is_answered: whether its callback is noted as sent.
        attempts: how many attempts ended badly after its own code had begun.
        failed_starts: how many starts failed before its own code began, since the last attempt.
        age: time in its state.
        stalled: time since it, or another run of its pool or else of its deployment, last ran, or
            since it was created; 0 while another runs.
        is_silent: whether its heartbeats have stopped; false where that cannot be known.
        load: runnable processes per processor of this machine; 1 or less if it is not overloaded.
    """

    state: State[Any]
    has_pool: bool = True
    is_answered: bool = False
    attempts: int = 0
    failed_starts: int = 0
    age: timedelta = timedelta()
    stalled: timedelta = timedelta()
    is_silent: bool = False
    load: float = 1.0


@dataclass(frozen=True)
class Extend:
    """Keep the message invisible; the run goes on. An operator may want to know why it waits."""

    reason: str = ""


@dataclass(frozen=True)
class Acknowledge:
    """Delete the message; the callback is sent."""


@dataclass(frozen=True)
class Retry:
    """Start the run again after a delay, as itself, with the same id and page."""

    reason: str
    delay: timedelta


@dataclass(frozen=True)
class MarkCrashed:
    """Mark the run crashed and end its process; it is dead, hangs, or never started."""

    reason: str


@dataclass(frozen=True)
class Cancel:
    """Ask the service or worker that started the run to stop its process."""

    reason: str


@dataclass(frozen=True)
class Fail:
    """Send the failure and end the run; no run will answer this message."""

    sentence: str


Decision = Extend | Acknowledge | Retry | MarkCrashed | Cancel | Fail


def decide(run: Run | None, settings: Settings) -> Decision:
    """Decides about a run; ``None`` is a run that was deleted."""
    if run is None:
        return give_up("the run that makes them was deleted by an operator")
    state = run.state
    if state.is_final():
        return decide_finished(run, settings)
    if state.is_running():
        if run.age > timedelta(seconds=settings.run_timeout):
            return Cancel("It took longer than RUN_TIMEOUT")
        if run.is_silent:
            return MarkCrashed(NO_HEARTBEATS)
        return Extend()
    if state.is_cancelling():
        return give_up(CANCELLED) if run.age > TIME_TO_CANCEL else Extend()
    if state.is_pending():  # however long it waited before, it is about to begin
        if run.age > time_to_start(run.has_pool, run.load):
            return MarkCrashed("The service or worker that took it did not start it")
        return Extend()
    return decide_waiting(run, settings)


def decide_waiting(run: Run, settings: Settings) -> Decision:
    """Decides about a run that has not begun."""
    state = run.state
    if state.name == IN_LINE:
        return Extend("a concurrency limit of Prefect")
    waited = run.stalled if state.is_scheduled() else run.age
    if waited > timedelta(seconds=settings.start_timeout):
        return give_up(f"the run that makes them did not begin in time, it stayed {state.name}")
    if state.name == LATE and not run.stalled:
        return Extend("the other runs of its pool or service")
    return Extend()


def time_to_start(has_pool: bool, load: float) -> timedelta:
    """How long a run may be Pending; the interpreters of an overloaded machine start slowly."""
    if has_pool:
        return TIME_TO_START_IN_POOL
    return TIME_TO_START_HERE * min(max(load, 1.0), LONGEST_LOAD)


def decide_finished(run: Run, settings: Settings) -> Decision:
    """Decides about a run that has ended."""
    state = run.state
    if run.is_answered or state.is_completed():
        return Acknowledge()
    if state.name == REFUSED and state.message:
        return Fail(state.message)
    if state.is_cancelled() and state.message != SERVICE_STOPPED:
        return give_up(CANCELLED)
    tries = run.failed_starts or run.attempts
    longer: int = 4 ** min(max(tries - 1, 0), 10)  # a timedelta has a limit
    delay = min(FIRST_DELAY * longer, LONGEST_DELAY)
    if run.failed_starts:  # no capacity, a quota, an image: not a fault of the export
        if run.stalled > timedelta(seconds=settings.start_timeout):
            return give_up("the run that makes them could not be started in time")
        reason = f"Not started yet, tried until START_TIMEOUT; last time: {state.message}"
        return Retry(reason, delay)
    if run.attempts < settings.max_attempts:
        if run.has_pool and state.message == NO_HEARTBEATS:
            delay = max(delay, TIME_TO_STOP)
        return Retry(f"Attempt {run.attempts} ended {state.name}: {state.message}", delay)
    if state.is_failed() and state.message and not state.message.startswith(EXCEPTION_OF_FLOW):
        return Fail(state.message)  # the flow's own sentence, not Prefect's
    return give_up(f"the run that makes them ended {state.name} too often")


def give_up(reason: str) -> Fail:
    return Fail(f"The batches could not be made ({reason}); please ask for them again.")
