"""Heartbeats of runs as they arrive at Prefect's API.

Prefect sends a heartbeat event for each running flow over a WebSocket. A missing heartbeat can mean
a dead process, but also a WebSocket that a proxy refuses, an outage, or a wrong clock. So nothing
here uses the clock of a run or of this machine: this process's own heartbeats are the measure, and
both are compared by the time of their arrival.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.events.clients import get_events_client
from prefect.events.filters import EventFilter, EventOrder
from prefect.events.schemas.events import ReceivedEvent
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings

from flows.listening.clock import ServerClock
from splitter.errors import SetupError
from splitter.sentences import Actor, Sentence
from splitter.settings import Docs
from splitter.wording import duration

FREQUENCY = 30
"""Seconds between two heartbeats. The automation "listen comes back" in prefect.yaml fires after 45
seconds; Prefect's default of 180 would start a new listener every minute."""

MISSED_HEARTBEATS = 3
"""Missed heartbeats after which a running run counts as dead."""

LARGEST_SKEW = timedelta(minutes=2)
"""The difference between two clocks that causes a warning."""

MISSED_OF_ITS_OWN = 5
"""Missed heartbeats of the listener itself that cause a warning."""

SECONDS_TO_CONNECT = 10
"""Timeout of the WebSocket to Prefect's API."""

TOO_FEW_HEARTBEATS = Sentence(
    "setup.heartbeats",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY is {frequency:bare}; the listener needs {needed:bare}, or "
    "another listener is started beside it every minute.",
    Actor.OPERATOR,
    "Set PREFECT_FLOWS_HEARTBEAT_FREQUENCY where the listener runs.",
)


def check_frequency() -> None:
    """Make sure that a deployed listener sends heartbeats as often as the automation expects.

    Raises:
        SetupError: if it sends none or fewer.
    """
    frequency = get_current_settings().flows.heartbeat_frequency
    if frequency is None or frequency > FREQUENCY:
        raise SetupError(TOO_FEW_HEARTBEATS, frequency=str(frequency), needed=str(FREQUENCY))


def websocket_problem() -> str | None:
    """A sentence if the WebSocket to Prefect's API does not open, else None."""

    async def connect() -> None:
        async with get_events_client(reconnection_attempts=0):
            pass

    try:
        asyncio.run(asyncio.wait_for(connect(), SECONDS_TO_CONNECT))
    except Exception as error:
        return unnoticed(f"The WebSocket to Prefect's API does not open ({error})")
    return None


def unnoticed(fault: str) -> str:
    """The warning about a fault because of which dead runs are not noticed."""
    return (
        f"{fault}, so a run that dies is not noticed. A proxy in front of Prefect's API has to "
        f"pass WebSocket upgrades: see {Docs().page('where-prefect-runs.md')}."
    )


def unbroken_since(arrivals: Sequence[datetime], longest_gap: timedelta) -> datetime:
    """The first of the latest arrivals, newest first, between which no gap is too long."""
    since = arrivals[0]
    for earlier in arrivals[1:]:
        if since - earlier > longest_gap:
            break
        since = earlier
    return since


class Heartbeats:
    """Finds the runs whose heartbeats have stopped."""

    SECONDS_BETWEEN_READS = 15

    def __init__(self, prefect: SyncPrefectClient, own_run: UUID, clock: ServerClock) -> None:
        self._prefect = prefect
        self._own_run = own_run
        self._clock = clock
        # A listener without a deployment may send fewer; see check_frequency.
        frequency = get_current_settings().flows.heartbeat_frequency
        self._period = timedelta(seconds=frequency or FREQUENCY)
        self._own: list[datetime] = []
        self._read_at = float("-inf")
        self._is_silent = False
        self._is_any_heard = False
        self._warned: set[str] = set()
        self._logger = get_run_logger()

    def have_stopped(self, run: FlowRun) -> bool:
        """Whether a running run has missed three heartbeats.

        Never while this process's own heartbeats do not arrive without a gap: behind a proxy
        without WebSockets, during an outage, and for a while after one. Nor for a run of a work
        pool that has never sent any, until another has: its machine may be behind another proxy.
        """
        own = self._own_arrivals()
        if not own or run.state is None or not run.state.is_running():
            return False
        since = own[0] - MISSED_HEARTBEATS * self._period
        if max(run.state.timestamp, unbroken_since(own, 2 * self._period)) > since:
            return False
        last = last_arrival(self._prefect, run.id, since)
        if last:
            self._is_any_heard = True
            self._warn_of_skew(f"the machine that runs {run.name}", last.received - last.occurred)
            return False
        return not run.work_pool_name or self._is_heard(run)

    def warn_of_silence(self) -> None:
        """Log once if this process's own heartbeats do not arrive although Prefect answers."""
        own = self._own_arrivals()
        newest = own[0] if own else datetime.min.replace(tzinfo=UTC)
        is_silent = self._clock.elapsed(newest) > MISSED_OF_ITS_OWN * self._period
        if is_silent and not self._is_silent:
            warning = unnoticed("The heartbeats of this listener do not arrive at Prefect")
            self._logger.warning("%s", warning)
            create_markdown_artifact(warning, key="heartbeats", description="No heartbeats arrive")
        elif self._is_silent and not is_silent:
            self._logger.info("The heartbeats of this listener arrive at Prefect again")
        self._is_silent = is_silent
        self._warn_of_skew("this machine", self._clock.skew)

    def _own_arrivals(self) -> list[datetime]:
        """The latest arrivals of this process's heartbeats, newest first."""
        if time.monotonic() - self._read_at >= self.SECONDS_BETWEEN_READS:
            events = self._prefect.read_events(_heartbeats_of(self._own_run), limit=8).events
            self._own = sorted((event.received for event in events), reverse=True)
            self._read_at = time.monotonic()
        return self._own

    def _is_heard(self, run: FlowRun) -> bool:
        """Whether a heartbeat of a run, or of any other, has ever arrived; warns if not."""
        if not self._is_any_heard:
            page = self._prefect.read_events(_heartbeats_of(run.id), limit=1)
            self._is_any_heard = bool(page.events)
        if not self._is_any_heard:
            fault = f"No heartbeat of {run.name}, nor of another export, has arrived at Prefect"
            self._warn_once(fault, unnoticed(fault))
        return self._is_any_heard

    def _warn_of_skew(self, machine: str, skew: timedelta) -> None:
        if abs(skew) > LARGEST_SKEW:
            off = duration(abs(skew).total_seconds())
            self._warn_once(machine, f"The clock of {machine} is off by {off}")

    def _warn_once(self, about: str, warning: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            self._logger.warning("%s", warning)


def last_arrival(prefect: SyncPrefectClient, run: UUID, since: datetime) -> ReceivedEvent | None:
    """The last heartbeat of a run that has arrived since a moment.

    Events are ordered by the clock of their sender. Pages are read on because another attempt, on a
    machine whose clock is ahead, may have sent those that seem the latest.
    """
    page = prefect.read_events(_heartbeats_of(run), limit=50)
    while True:
        fresh = [event for event in page.events if event.received >= since]
        if fresh or not page.next_page:
            return max(fresh, key=lambda event: event.received, default=None)
        page = prefect.read_events_page(str(page.next_page))


def _heartbeats_of(run: UUID) -> EventFilter:
    """The heartbeats of a run, the latest first by its own clock, which may be ahead or behind."""
    now = datetime.now(UTC)
    return EventFilter.model_validate(
        {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run}"]},
            "occurred": {"since": now - timedelta(days=2), "until": now + timedelta(days=2)},
            "order": EventOrder.DESC,
        }
    )
