"""The progress of a transfer, on the run page and in the log."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import LoggerAdapter
from types import TracebackType
from typing import Self, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import SyncClientContext
from prefect.logging import get_run_logger

from flows.support.outage import FEW_RETRIES, waits_for_prefect
from splitter.wording import duration, size

SECONDS_BETWEEN_UPDATES = 2.0
SECONDS_BETWEEN_LINES = 15.0


Logger = LoggerAdapter[logging.Logger] | logging.Logger


@contextmanager
def best_effort(what: str, logger: Logger, *, waits: bool = True) -> Iterator[None]:
    """Log and ignore errors in display-only code.

    Requests in it are repeated a few times only, so that one that Prefect refuses again and again
    does not hold the export. It waits first for the end of an outage.

    Args:
        what: the subject of the log line, such as "The summary".
        waits: whether it waits for the end of an outage.
    """
    if waits:
        wait_for_prefect()
    try:
        with waits_for_prefect(FEW_RETRIES if waits else 0):
            yield
    except Exception:
        logger.warning("%s could not be shown", what, exc_info=True)


def wait_for_prefect() -> None:
    """Ask the health route of Prefect's API, repeatedly if the run's settings say so."""
    with SyncClientContext.get_or_create() as context:
        context.client.api_healthcheck()


class Progress:
    """A progress artifact of the current run that any thread may advance.

    A transfer reports thousands of times; the artifact is updated every two seconds.
    """

    def __init__(self, what: str, total: int) -> None:
        """``total``: bytes of the whole transfer."""
        self._what = what
        self._total = total
        self._done = 0
        self._lock = threading.Lock()
        self._is_lost = False
        self._logger = get_run_logger()
        self._began = self._updated = self._logged = time.monotonic()
        self._artifact: UUID | None = None
        with best_effort("Progress", self._logger):
            description = f"{what} of {size(total)}"
            self._artifact = cast(UUID, create_progress_artifact(0.0, description=description))

    def __call__(self, count: int) -> None:
        """Add ``count`` bytes; a negative count takes back a part that is sent again."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._updated < SECONDS_BETWEEN_UPDATES:
                return
            self._updated = now
            percent = self.percent
            left = (now - self._began) * (100 - percent) / percent if percent > 0 else 0.0
            if now - self._logged >= SECONDS_BETWEEN_LINES:
                self._logged = now
                self._logger.info("%s: %.0f %% of %s", self._what, percent, size(self._total))
        self._show(
            percent, f"{self._what}: {percent:.0f} % of {size(self._total)}, {duration(left)} to go"
        )

    @property
    def percent(self) -> float:
        return min(100.0, 100.0 * self._done / self._total) if self._total else 100.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        percent = 100.0 if error is None else self.percent
        ended = "" if error is None else f", stopped at {percent:.0f} %"
        self._show(percent, f"{self._what} of {size(self._total)}{ended}")

    def _show(self, percent: float, description: str) -> None:
        if self._artifact is None:
            return
        try:
            with waits_for_prefect(0):
                update_progress_artifact(self._artifact, percent, description=description)
            self._is_lost = False
        except Exception as error:
            if not self._is_lost:
                self._logger.warning("Progress could not be shown: %r", error)
            self._is_lost = True
