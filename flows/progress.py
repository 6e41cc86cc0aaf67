"""Progress of a transfer, for a person who watches the run page or the log."""

import threading
import time
from types import TracebackType
from typing import Self, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

SECONDS_BETWEEN_UPDATES = 2.0
SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """A progress artifact of the current run that any thread may advance.

    Updates are thinned out: a transfer reports thousands of times, a person looks now and then.
    """

    def __init__(self, what: str, total: int) -> None:
        """``total``: the bytes that make 100 %."""
        self._what = what
        self._total = total
        self._done = 0
        self._lock = threading.Lock()
        self._logger = get_run_logger()
        self._updated = self._logged = time.monotonic()
        self._artifact = cast(
            UUID, create_progress_artifact(0.0, description=f"{what}, {total:,} bytes")
        )

    def __call__(self, size: int) -> None:
        """Count ``size`` more bytes; fewer, where a part is sent again and ``size`` is negative."""
        with self._lock:
            self._done += size
            now = time.monotonic()
            if now - self._updated < SECONDS_BETWEEN_UPDATES:
                return
            self._updated = now
            percent = self.percent
            if now - self._logged >= SECONDS_BETWEEN_LINES:
                self._logged = now
                self._logger.info("%s: %.0f %% of %s bytes", self._what, percent, self._total)
        update_progress_artifact(self._artifact, percent)

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
        update_progress_artifact(self._artifact, 100.0 if error is None else self.percent)
