"""Waits out outages of Prefect, SQS or the network and logs each once."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from httpx import HTTPStatusError, TransportError
from prefect.context import SettingsContext, get_settings_context
from prefect.logging import get_run_logger

from splitter.errors import Kind, is_kind, is_transient

TRANSIENT = frozenset({408, 429, *range(500, 600)})
"""HTTP status codes that Prefect's client repeats and that count as an outage here."""

MANY_RETRIES, FEW_RETRIES = 9, 2
"""Retries of Prefect's client: in code that only waits, and in code that has other work meanwhile.
The waits between them are 2, 4, 8 … seconds: a quarter of an hour, and six seconds."""


class Outage:
    """The outages that a loop goes through."""

    SECONDS_BETWEEN_TRIES = 5

    SECONDS_UNTIL_OVER = 60
    """Without an error, until an outage counts as over. A service that answers now and then has
    one outage, which is logged once."""

    def __init__(self) -> None:
        self._failed_at: float | None = None  # the last error of an outage that lasts
        self._logger = get_run_logger()

    @contextmanager
    def wait_out_outage(self, stopping: threading.Event) -> Iterator[None]:
        """Swallow the error of an outage and wait a little; pass on any other error."""
        try:
            yield
        except Exception as error:
            if not is_outage(error):
                raise
            if self._failed_at is None:
                self._logger.warning("Waiting for a service that does not answer: %r", error)
            stopping.wait(self.SECONDS_BETWEEN_TRIES)
            self._failed_at = time.monotonic()
            return
        if self._failed_at and time.monotonic() - self._failed_at >= self.SECONDS_UNTIL_OVER:
            self._logger.info("All services answer again")
            self._failed_at = None


@contextmanager
def waits_for_prefect(retries: int = MANY_RETRIES) -> Iterator[None]:
    """Repeat requests to Prefect's API during an outage of up to a quarter of an hour.

    By default Prefect's client repeats only 429, 502 and 503, for a minute. A run would then fail,
    and a runner would end after the third error together with all its runs.
    """
    context = get_settings_context()
    client = context.settings.client.model_copy(
        update={"max_retries": retries, "retry_extra_codes": set(TRANSIENT)}
    )
    # A copy, because Prefect's temporary_settings validates every setting again, in 20 ms.
    settings = context.settings.model_copy(update={"client": client})
    with SettingsContext(profile=context.profile, settings=settings):
        yield


def is_outage(error: BaseException) -> bool:
    """Whether an error says that AWS or Prefect is away for a while.

    Expired credentials are no outage: those of an assumed role last an hour and do not come back
    by waiting. The listener's run fails, and its next attempt loads new ones.
    """
    if isinstance(error, HTTPStatusError):
        return error.response.status_code in TRANSIENT
    if is_kind(error, Kind.EXPIRED):
        return False
    return isinstance(error, TransportError) or is_transient(error)
