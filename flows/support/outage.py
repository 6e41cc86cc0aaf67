"""Time without Prefect's API, SQS or the network: waited out, said once."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from httpx import HTTPStatusError, TransportError
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from splitter.errors import Kind, is_kind, is_transient

PATIENT, BRIEF = 9, 2
"""Tries of Prefect's client: of who only waits, and of who has something else to do meanwhile."""


class Outage:
    """The outages that a loop goes through.

    Attributes:
        reachable_since: moment of ``time.monotonic()`` before which a service did not answer.
    """

    SECONDS_BETWEEN_TRIES = 5

    def __init__(self) -> None:
        self.reachable_since = time.monotonic()
        self._lasts = False
        self._logger = get_run_logger()

    @contextmanager
    def wait_out_outage(self, stopping: threading.Event) -> Iterator[None]:
        """Swallow what an outage raises, and wait a little; anything else is passed on."""
        try:
            yield
        except Exception as error:
            if not is_outage(error):
                raise
            if not self._lasts:
                self._logger.warning("Waiting for a service that does not answer: %r", error)
            self._lasts = True
            stopping.wait(self.SECONDS_BETWEEN_TRIES)
            # Not only once all is over: what is tried next may be to judge the runs.
            self.reachable_since = time.monotonic()
            return
        if self._lasts:
            self._logger.info("All services answer again")
        self._lasts = False


@contextmanager
def waits_for_prefect(tries: int = PATIENT) -> Iterator[None]:
    """Let what is asked of Prefect's API outlast an outage of a quarter of an hour.

    Prefect's client waits 2, 4, 8 … seconds between its tries, and by default gives up after a
    minute: a run would fail, and a runner end after the third time, with all that it runs.
    """
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: tries}):
        yield


def is_outage(error: BaseException) -> bool:
    """Whether a service, AWS or Prefect, is away; it can come back.

    Credentials whose session is over are none: those of an assumed role last for an hour, and who
    waits would wait for ever. The listener's run fails, and starts again with new ones.
    """
    if isinstance(error, HTTPStatusError):
        return error.response.is_server_error or error.response.status_code == 429
    if is_kind(error, Kind.EXPIRED):
        return False
    return isinstance(error, TransportError) or is_transient(error)
