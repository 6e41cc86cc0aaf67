"""Keeps one listener of a deployment: the one that started last goes on."""

import time
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.logging import get_run_logger

from flows.listening.clock import ServerClock
from flows.listening.decision import MISSED_HEARTBEATS
from flows.listening.heartbeats import Heartbeats
from flows.listening.recovery import force_cancelled, runs_of
from flows.support.attempt import is_running, is_superseded

SECONDS_BETWEEN_LOOKS = 30
"""Seconds between two checks for dead listeners."""

TIME_TO_START = timedelta(minutes=10)
"""Pending time after which a listener counts as dead."""


class Standing(Enum):
    """Whether a listener's run goes on."""

    LISTENS = auto()
    TAKEN_OVER = auto()
    """A listener that started later is running."""
    NOT_RUNNING = auto()
    """Its run was suspended, cancelled or started again; another process owns its state."""


class Takeover:
    """Compares the listeners of one deployment."""

    def __init__(
        self, prefect: SyncPrefectClient, heartbeats: Heartbeats, clock: ServerClock
    ) -> None:
        self._prefect = prefect
        self._heartbeats = heartbeats
        self._clock = clock
        self._checked_at = time.monotonic()
        self._logger = get_run_logger()

    def standing(self) -> Standing:
        """Whether this listener goes on; ends the runs of earlier listeners that are dead."""
        here = self._prefect.read_flow_run(UUID(runtime.flow_run.id))
        if is_superseded(here):
            return Standing.NOT_RUNNING
        if not here.deployment_id:
            return Standing.LISTENS
        alive = [StateType.RUNNING, StateType.PENDING]
        others = runs_of(self._prefect, here.deployment_id, alive)
        if any(is_running(run) and began(run) > began(here) for run in others):
            return Standing.TAKEN_OVER
        if time.monotonic() - self._checked_at >= SECONDS_BETWEEN_LOOKS:
            self._checked_at = time.monotonic()
            for run in others:
                if run.id != here.id and self._is_dead(run):
                    self._logger.warning("%s gave no sign of life; this run takes over", run.name)
                    force_cancelled(self._prefect, run, "Died; another listener has taken over")
        return Standing.LISTENS

    def _is_dead(self, run: FlowRun) -> bool:
        if is_running(run):
            return self._heartbeats.missed(run) >= MISSED_HEARTBEATS
        return run.state is not None and self._clock.now() - run.state.timestamp > TIME_TO_START


def began(run: FlowRun) -> datetime:
    """When the present attempt of a running run began; Prefect's ``start_time`` is the first's."""
    return run.state.timestamp if run.state else datetime.min.replace(tzinfo=UTC)
