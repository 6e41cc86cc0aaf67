"""The clock of Prefect's API, which the listener uses in place of this machine's."""

import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from uuid import UUID

from httpx import Response
from prefect.client.orchestration import SyncPrefectClient, get_client

LONGEST_PAUSE = 60
"""Seconds without a response of Prefect's API that count as an outage."""


class ServerClock:
    """The clock of Prefect's API, read from the Date header of its answers."""

    def __init__(self) -> None:
        self._ahead = timedelta()
        self._answered_at = float("-inf")
        self._answers_since: datetime | None = None
        self._seen: dict[UUID, tuple[object, datetime]] = {}

    def note(self, response: Response) -> None:
        """Read an answer's Date; an event hook of httpx."""
        if response.is_server_error:  # a proxy's, perhaps
            return
        with suppress(ValueError):
            there = parsedate_to_datetime(response.headers.get("Date", ""))
            if there.tzinfo:  # not where a proxy has added a second date
                self._ahead = there - datetime.now(UTC)
        moment = time.monotonic()
        if moment - self._answered_at > LONGEST_PAUSE:
            self._answers_since = self.now()
        self._answered_at = moment

    def client(self) -> SyncPrefectClient:
        """A client of Prefect's API that keeps this clock right."""
        hooks = {"event_hooks": {"response": [self.note]}}
        return get_client(sync_client=True, httpx_settings=hooks)

    def now(self) -> datetime:
        """The time at Prefect's API, to a second; this machine's before its first answer."""
        return datetime.now(UTC) + self._ahead

    def elapsed(self, since: datetime) -> timedelta:
        """The time since a moment, or since the last outage of Prefect's API if that is shorter.

        No run can begin during an outage, or while this process is stopped or frozen.
        """
        return self.now() - max(since, self._answers_since or since)

    def unchanged(self, run: UUID, value: object) -> timedelta:
        """How long a value of a run has been the same at each call, outages excluded."""
        before, since = self._seen.get(run, (None, self.now()))
        if value != before:
            since = self.now()
        self._seen[run] = value, since
        return self.elapsed(since)

    @property
    def skew(self) -> timedelta:
        """The difference between this machine's clock and the API's."""
        return abs(self._ahead)
