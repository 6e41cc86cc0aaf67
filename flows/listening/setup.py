"""Checks of the settings and services that listening and serving need."""

from httpx import HTTPStatusError, TransportError
from prefect.client.orchestration import get_client
from prefect.logging import get_logger
from prefect.settings import get_current_settings

from blocks.saved import Aws
from flows.listening.heartbeats import websocket_problem
from splitter.errors import SetupError
from splitter.sentences import Actor, Sentence, Words
from splitter.settings import Settings

NO_TRIGGER_QUEUE = Sentence(
    "setup.trigger-queue",
    "TRIGGER_QUEUE_URL is not set; the listener needs the queue's URL.",
    Actor.OPERATOR,
    "Set TRIGGER_QUEUE_URL where the listener runs.",
)
NO_CREDENTIALS = Sentence(
    "setup.aws-credentials",
    "no AWS credentials were found, neither saved as a block nor here.",
    Actor.OPERATOR,
    "Save the block aws-credentials/biospex, or give the process a role or a profile.",
)
NO_PREFECT_URL = Sentence(
    "setup.prefect-url",
    "PREFECT_API_URL is not set; runs need a Prefect server that stays.",
    Actor.OPERATOR,
    "Set PREFECT_API_URL to the address of the server, which ends in /api.",
)
PREFECT_REFUSES = Sentence(
    "setup.prefect-refuses",
    "the Prefect API at {url} answers {status:bare}; are PREFECT_API_KEY or "
    "PREFECT_API_AUTH_STRING right?",
    Actor.OPERATOR,
    "Correct the key or the auth string.",
)
PREFECT_SILENT = Sentence(
    "setup.prefect-silent",
    "the Prefect API at {url} does not answer ({error}).",
    Actor.OPERATOR,
    "Check that the server runs and that this machine reaches it.",
)

log = get_logger("setup")


def trigger_queue(settings: Settings) -> str:
    """The URL of the trigger queue.

    Raises:
        SetupError: if it is not set.
    """
    if not settings.trigger_queue_url:
        raise SetupError(NO_TRIGGER_QUEUE)
    return settings.trigger_queue_url


def check_services() -> None:
    """Check that a Prefect API answers and that AWS credentials are found.

    A WebSocket that does not open is only a warning: exports are split without it.

    Raises:
        SetupError: with the fault.
    """
    url = get_current_settings().api.url
    if not url:  # Prefect would start a temporary server
        raise SetupError(NO_PREFECT_URL)
    with get_client(sync_client=True) as prefect:
        try:
            prefect.read_flows(limit=1)
        except HTTPStatusError as error:
            status = str(error.response.status_code)
            raise SetupError(PREFECT_REFUSES, url=Words(url), status=status) from error
        except TransportError as error:
            raise SetupError(PREFECT_SILENT, url=Words(url), error=str(error)) from error
    if problem := websocket_problem():
        log.warning(problem)
    if Aws().session.get_credentials() is None:
        raise SetupError(NO_CREDENTIALS)
