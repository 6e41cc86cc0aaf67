"""Heartbeats of runs as they arrive at Prefect's API.

Prefect sends a heartbeat event for each running flow over a WebSocket. A missing heartbeat can mean
a dead process, but also a WebSocket that a proxy refuses, an outage, or a wrong clock. So nothing
here uses the clock of a run or of this machine: this process's own heartbeats are the measure, and
both are compared by the time of their arrival.
"""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events.clients import get_events_client
from prefect.events.filters import EventFilter, EventOrder
from prefect.events.schemas.events import ReceivedEvent
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings

from flows.listening.clock import ServerClock
from flows.listening.decision import MISSED_HEARTBEATS
from splitter.errors import SetupError
from splitter.sentences import Actor, Sentence
from splitter.settings import Docs
from splitter.wording import duration

FREQUENCY = 30
"""Seconds between two heartbeats. The automation "listen comes back" in prefect.yaml fires after 45
seconds; Prefect's default of 180 would start a new listener every minute."""

SECONDS_BETWEEN_SIGNS = 60
"""Between two signs of life that a listener sends over HTTP."""

LARGEST_SKEW = timedelta(minutes=2)
"""The difference between two clocks that causes a warning."""

SECONDS_TO_CONNECT = 10
"""Timeout of the WebSocket to Prefect's API."""

NO_WEBSOCKET = (
    "The WebSocket to Prefect's API does not open ({error}), so runs cannot send heartbeats and a "
    "run that dies is not noticed. A proxy in front of the API has to pass WebSocket upgrades: "
    "see {page}."
)

HEARTBEAT_ENVIRONMENT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(FREQUENCY)}
"""Environment of a run whose heartbeats are counted here."""

NO_HEARTBEATS = (
    "The heartbeats of this listener do not arrive at Prefect, so runs that died cannot be "
    "distinguished from healthy ones. No run is marked crashed until they do. A proxy in front of "
    "Prefect's API has to pass WebSocket upgrades: see {page}."
)
UNHEARD = (
    "No heartbeat of {run} has arrived at Prefect, nor of any other export, so it would not be "
    "noticed if it died. Where exports run, a proxy has to pass WebSocket upgrades: see {page}."
)

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
        return NO_WEBSOCKET.format(error=error, page=Docs().page("where-prefect-runs.md"))
    return None


@contextmanager
def shows_life(run: UUID) -> Iterator[None]:
    """Change a run in Prefect every minute until the end of the block.

    The change goes over HTTP, so it shows that a listener is alive whose WebSocket is refused.
    """
    is_over = threading.Event()

    def show() -> None:
        with get_client(sync_client=True) as prefect:
            while not is_over.wait(SECONDS_BETWEEN_SIGNS):
                with suppress(Exception):  # while Prefect is away nobody is judged
                    prefect.update_flow_run_labels(run, {"biospex.listens": True})

    threading.Thread(target=show, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def own_frequency() -> timedelta:
    """The time between two heartbeats of this process."""
    return timedelta(seconds=get_current_settings().flows.heartbeat_frequency or FREQUENCY)


def unbroken_since(arrivals: Sequence[datetime], longest_gap: timedelta) -> datetime:
    """The first of the latest arrivals, newest first, between which no gap is too long."""
    since = arrivals[0]
    for earlier in arrivals[1:]:
        if since - earlier > longest_gap:
            break
        since = earlier
    return since


class Heartbeats:
    """Counts the heartbeats that runs have missed."""

    SECONDS_BETWEEN_READS = 15

    def __init__(self, prefect: SyncPrefectClient, own_run: UUID, clock: ServerClock) -> None:
        self._prefect = prefect
        self._own_run = own_run
        self._clock = clock
        self._own: list[datetime] = []
        self._read_at = float("-inf")
        self._is_silence_logged = False
        self._is_any_heard = False
        self._unheard: set[UUID] = set()
        self._skewed: set[UUID] = set()
        self._logger = get_run_logger()

    def missed(self, run: FlowRun) -> float:
        """How many heartbeats a running run has missed.

        Counts only while this process's own heartbeats arrive without a gap, so it is 0 behind a
        proxy without WebSockets, during an outage, and for a while after one. It is 0 as well for a
        run of a work pool that has never sent any, until another has: its machine may be behind
        another proxy.
        """
        if run.state is None or not run.state.is_running():
            return 0.0
        own = self._own_arrivals()
        if not own:
            return 0.0
        frequency = own_frequency()
        since = max(run.state.timestamp, unbroken_since(own, 2 * frequency))
        if own[0] - since < MISSED_HEARTBEATS * frequency:
            return 0.0
        last = last_arrival(self._prefect, run.id, since)
        if last:
            self._is_any_heard = True
            self._warn_of_skew(run, last)
        elif run.work_pool_name and not self._is_heard(run):
            return 0.0
        silence = own[0] - (last.received if last else since)
        return max(silence.total_seconds() / frequency.total_seconds(), 0.0)

    def warn_of_silence(self, reachable_since: float) -> None:
        """Log once if this process's own heartbeats do not arrive although Prefect answers.

        Args:
            reachable_since: moment of ``time.monotonic()`` since which Prefect has answered.
        """
        patience = MISSED_HEARTBEATS * own_frequency()
        if time.monotonic() - reachable_since < patience.total_seconds():
            return
        own = self._own_arrivals()
        is_silent = not own or self._clock.now() - own[0] > patience
        if is_silent and not self._is_silence_logged:
            warning = NO_HEARTBEATS.format(page=Docs().page("where-prefect-runs.md"))
            self._logger.warning(warning)
            create_markdown_artifact(warning, key="heartbeats", description="No heartbeats arrive")
        elif self._is_silence_logged and not is_silent:
            self._logger.info("The heartbeats of this listener arrive at Prefect again")
        self._is_silence_logged = is_silent
        if self._clock.skew > LARGEST_SKEW and self._own_run not in self._skewed:
            self._skewed.add(self._own_run)
            self._logger.warning(
                "The clock of this machine is off by %s", duration(self._clock.skew.total_seconds())
            )

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
        if not self._is_any_heard and run.id not in self._unheard:
            self._unheard.add(run.id)
            where = Docs().page("where-prefect-runs.md")
            self._logger.warning("%s", UNHEARD.format(run=run.name, page=where))
        return self._is_any_heard

    def _warn_of_skew(self, run: FlowRun, heartbeat: ReceivedEvent) -> None:
        skew = abs(heartbeat.received - heartbeat.occurred)
        if skew > LARGEST_SKEW and run.id not in self._skewed:
            self._skewed.add(run.id)
            self._logger.warning(
                "The clock of the machine that runs %s is off by %s",
                run.name,
                duration(skew.total_seconds()),
            )


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
