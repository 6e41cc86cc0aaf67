"""Restarts the listener: by its own hook, and by ``flows.serve``, which looks every few seconds."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.logging import get_logger
from prefect.states import AwaitingRetry

from flows.listening.clock import ServerClock
from flows.listening.decision import MISSED_HEARTBEATS, TIME_TO_CANCEL, time_to_start_here
from flows.listening.heartbeats import FREQUENCY, SECONDS_BETWEEN_SIGNS, last_arrival
from flows.listening.processes import end_leftovers, end_run, machine_load
from flows.listening.recovery import force_cancelled, runs_of
from flows.support.attempt import FAILED
from flows.support.prefect_texts import SERVICE_STOPPED

log = get_logger("serve")

UNFINISHED = [
    StateType.RUNNING,
    StateType.PENDING,
    StateType.SCHEDULED,
    StateType.PAUSED,
    StateType.CANCELLING,
]
ENDED = [StateType.COMPLETED, *FAILED]

SILENCE = timedelta(seconds=(MISSED_HEARTBEATS + 1) * FREQUENCY)
"""Time without heartbeats after which a listener that has sent some counts as dead."""

NO_SIGN = timedelta(seconds=5 * SECONDS_BETWEEN_SIGNS)
"""Time without a change of its run after which a listener without heartbeats counts as dead."""

FIRST_DELAY = timedelta(seconds=10)
"""Delay before a dead listener starts again; it doubles after each early death."""

LONGEST_DELAY = timedelta(minutes=5)

SHORT_LIFE = timedelta(minutes=5)
"""A listener that ran for longer counts as one that worked."""


def restart_delay(states: Sequence[State[Any]]) -> timedelta:
    """The delay before a run starts again, from its states in order."""
    deaths = 0
    began: datetime | None = None
    for state in states:
        if state.is_running():
            began = state.timestamp
        elif state.type in FAILED:
            if began and state.timestamp - began > SHORT_LIFE:
                deaths = 0
            deaths += 1
            began = None
    doubled: int = 2 ** min(max(deaths - 1, 0), 10)
    return min(FIRST_DELAY * doubled, LONGEST_DELAY)


def schedule_restart(
    prefect: SyncPrefectClient, run: UUID, message: str, delay: timedelta | None = None
) -> None:
    """Start a listener's run again, after a delay that grows with each early death."""
    if delay is None:
        states = prefect.read_flow_run_states(run)
        delay = restart_delay(sorted(states, key=lambda state: state.timestamp))
    when = datetime.now(UTC) + delay
    prefect.set_flow_run_state(run, AwaitingRetry(scheduled_time=when, message=message))


class Upkeep:
    """Makes sure that one listener of a deployment runs, or is about to."""

    def __init__(self, prefect: SyncPrefectClient, deployment: UUID, clock: ServerClock) -> None:
        self._prefect = prefect
        self._deployment = deployment
        self._clock = clock
        self._heard_at: dict[UUID, float] = {}

    def begin(self) -> None:
        """Restart the listener that an earlier service left unfinished, or create one."""
        left = runs_of(self._prefect, self._deployment, UNFINISHED)
        for run in left:
            if is_cancelling(run):  # Prefect allows it no other state
                force_cancelled(self._prefect, run, "The service that ran it has ended")
            else:
                schedule_restart(self._prefect, run.id, "Served again", timedelta())
        if all(is_cancelling(run) for run in left):
            self._prefect.create_flow_run_from_deployment(self._deployment)

    def look(self) -> None:
        """Restart a listener that has ended or died, unless a person cancelled it."""
        unfinished = runs_of(self._prefect, self._deployment, UNFINISHED)
        for run in unfinished:
            if is_cancelling(run) and self._age(run) > TIME_TO_CANCEL:
                force_cancelled(self._prefect, run, "Cancelled, but nothing stopped it")
                end_run(run, log)
            elif self._is_dead(run):
                log.warning("%s is dead and starts again", run.name)
                schedule_restart(self._prefect, run.id, "It died", timedelta())
                end_run(run, log)
            else:
                end_leftovers(run, self._clock.now(), log)
        if unfinished:
            return
        ended = runs_of(self._prefect, self._deployment, ENDED, FlowRunSort.END_TIME_DESC)
        if not ended or ended[0].state is None:
            self._prefect.create_flow_run_from_deployment(self._deployment)
            return
        run, state = ended[0], ended[0].state
        if state.is_completed():
            log.warning("No listener is running; another one starts")
            self._prefect.create_flow_run_from_deployment(self._deployment)
        elif not state.is_cancelled():
            log.warning("%s ended %s and starts again: %s", run.name, state.name, state.message)
            schedule_restart(self._prefect, run.id, f"It ended {state.name}: {state.message}")
        elif state.message == SERVICE_STOPPED:
            log.warning("The service that ran %s was stopped; it starts again here", run.name)
            schedule_restart(self._prefect, run.id, "Its service was stopped", timedelta())

    def _is_dead(self, run: FlowRun) -> bool:
        """Whether a run's heartbeats have stopped, or a service took it and did not start it.

        A run whose WebSocket is refused sends no heartbeats; its changes in Prefect count instead.
        """
        if run.state is None:
            return False
        if run.state.is_pending():
            return self._age(run) > time_to_start_here(machine_load())
        heard_at = self._heard_at.get(run.id, float("-inf"))
        if not run.state.is_running() or time.monotonic() - heard_at < FREQUENCY:
            return False
        self._heard_at[run.id] = time.monotonic()
        last = last_arrival(self._prefect, run.id, run.state.timestamp)
        if last is None:
            return run.updated is not None and self._clock.elapsed(run.updated) > NO_SIGN
        return self._clock.elapsed(last.received) > SILENCE

    def _age(self, run: FlowRun) -> timedelta:
        """The time in its state, outages excluded."""
        return self._clock.elapsed(run.state.timestamp) if run.state else timedelta()


def is_cancelling(run: FlowRun) -> bool:
    return bool(run.state and run.state.is_cancelling())
