"""What becomes of a run of create-batches: one pure function, and the listener alone asks it.

The message is the lease of an export and the listener its one owner: a run does its work and says
how that ended, and whether it is tried again, given up or answered is decided here. The table in
docs/reliability.md states the same rows.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from prefect.client.schemas.objects import State

from splitter.settings import Settings

MISSED_HEARTBEATS = 3
"""Heartbeats without which a run that is said to be running is dead."""

TIME_TO_START_HERE = timedelta(seconds=120)
"""Between the moment at which a service takes a run, without a work pool, and its start. One that
takes longer was taken by a service that has died since; START_TIMEOUT is for what a pool needs."""

TIME_TO_START_IN_POOL = timedelta(minutes=15)
"""Between the moment at which a worker takes a run and its start. Fargate takes five minutes at its
slowest; a run that takes longer was taken by a worker that has died since."""

IN_LINE = "AwaitingConcurrencySlot"
"""Prefect's name of the state of a run that waits for a concurrency limit."""

TIME_TO_CANCEL = timedelta(minutes=5)
"""Between the request to cancel a run and its end; ECS gives a task two minutes to stop."""

FIRST_DELAY = timedelta(seconds=15)
"""Before the second attempt; each further one waits four times as long."""

LONGEST_DELAY = timedelta(minutes=5)

SERVICE_STOPPED = "Runner is shutting down."
"""How Prefect's runner marks the runs that it cancels when it is stopped itself."""

CANCELLED = "the run that makes them was cancelled, by an operator or because it took too long"

REFUSED = "Refused"
"""Name of the state of a run that was only made to show why a message is not carried out."""


@dataclass(frozen=True)
class Run:
    """What is known of a run at one moment.

    Attributes:
        state: as Prefect has it.
        has_pool: whether a work pool starts it, rather than a service beside the listener.
        is_answered: whether it is noted that its callback is out.
        attempts: how often its own code has begun and has not come to a good end.
        failed_starts: how often it ended before its own code began, since the last attempt.
        age: time in its state.
        waited: time since it last ran, or since it was made if it never did.
        missed_heartbeats: how many are due since the last; 0 where it cannot be told.
    """

    state: State[Any]
    has_pool: bool = True
    is_answered: bool = False
    attempts: int = 0
    failed_starts: int = 0
    age: timedelta = timedelta()
    waited: timedelta = timedelta()
    missed_heartbeats: float = 0.0


@dataclass(frozen=True)
class Extend:
    """The run goes on: keep the message invisible."""


@dataclass(frozen=True)
class Acknowledge:
    """The callback is out: delete the message."""


@dataclass(frozen=True)
class Retry:
    """The run is tried again after a delay."""

    reason: str
    delay: timedelta


@dataclass(frozen=True)
class MarkCrashed:
    """Prefect thinks that the run goes on, but its process is dead or never was."""

    reason: str


@dataclass(frozen=True)
class Cancel:
    """Have the run's process stopped by what started it."""

    reason: str


@dataclass(frozen=True)
class Fail:
    """No run will answer any more: end what is left of it and send the failure."""

    sentence: str


Decision = Extend | Acknowledge | Retry | MarkCrashed | Cancel | Fail


def decide(run: Run | None, settings: Settings) -> Decision:
    """What the listener does about a run; ``None`` is one that was deleted."""
    if run is None:
        return give_up("the run that makes them was deleted by an operator")
    state = run.state
    if state.is_final():
        return after_the_end(run, settings)
    if state.is_running():
        if run.age > timedelta(seconds=settings.run_timeout):
            return Cancel("It took longer than RUN_TIMEOUT")
        if run.missed_heartbeats >= MISSED_HEARTBEATS:
            return MarkCrashed("Its process gave no sign of life for too long")
        return Extend()
    if state.is_cancelling():
        return give_up(CANCELLED) if run.age > TIME_TO_CANCEL else Extend()
    if state.name == IN_LINE:
        return Extend()  # a limit that an operator has set; the runs in front end by RUN_TIMEOUT
    if run.waited > timedelta(seconds=settings.start_timeout):
        return give_up(f"the run that makes them did not begin in time, it stayed {state.name}")
    if state.is_pending() and not run.has_pool and run.age > TIME_TO_START_HERE:
        return MarkCrashed("The service that took it did not start it")
    if state.is_pending() and run.has_pool and run.age > TIME_TO_START_IN_POOL:
        return MarkCrashed("The worker that took it did not start it")
    return Extend()


def after_the_end(run: Run, settings: Settings) -> Decision:
    """The same of a run that has ended."""
    state = run.state
    if run.is_answered or state.is_completed():
        return Acknowledge()
    if state.name == REFUSED and state.message:
        return Fail(state.message)
    if state.is_cancelled() and state.message != SERVICE_STOPPED:
        return give_up(CANCELLED)
    if run.failed_starts:  # no capacity, a quota, an image: nothing that the export could help
        if run.waited > timedelta(seconds=settings.start_timeout):
            return give_up("the run that makes them could not be started in time")
        return Retry(
            f"Not started yet, tried until START_TIMEOUT; last time: {state.message}",
            min(FIRST_DELAY * 4 ** (run.failed_starts - 1), LONGEST_DELAY),
        )
    if run.attempts < settings.max_attempts:
        return Retry(
            f"Attempt {run.attempts} ended {state.name}: {state.message}",
            min(FIRST_DELAY * 4 ** max(run.attempts - 1, 0), LONGEST_DELAY),
        )
    if state.is_failed() and state.message and not state.message.startswith("Flow run encounter"):
        return Fail(state.message)  # the flow's own sentence, not Prefect's
    return give_up(f"the run that makes them ended {state.name} too often")


def give_up(reason: str) -> Fail:
    return Fail(f"The batches could not be made ({reason}); please ask for them again.")
