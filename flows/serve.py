"""Both deployments served from one process: ``python -m flows.serve``.

Reads:      the environment: a Prefect API, AWS, ``TRIGGER_QUEUE_URL``
Writes:     the deployments ``create-batches/create-batches`` and ``listen/listen``, a run of the
            latter
Triggered:  by a person, a container or a systemd unit; it runs until it is stopped
"""

import asyncio
import os
import signal
import sys
from types import FrameType
from uuid import UUID

from httpx import HTTPStatusError, TransportError
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.runner import Runner
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry
from prefect.types.entrypoint import EntrypointType

from blocks.saved import Aws
from flows.create_batches import create_batches
from flows.listen import listen
from flows.support.outage import waits_for_prefect
from flows.support.run_tags import deployment_tags
from splitter.errors import SetupError
from splitter.settings import Settings

UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED, StateType.PAUSED]


async def serve(settings: Settings) -> None:
    """Register both deployments, set the listener going and run what comes, until SIGTERM.

    ``settings``: such as have been checked.
    """
    service = Runner(
        name="biospex",
        limit=settings.max_in_flight + 1,  # every export in flight, and the listener
        query_seconds=1,
        pause_on_shutdown=False,
    )
    # A run form that is submitted empty is an empty request, whose missing fields are named.
    for flow, kind, parameters in (
        (create_batches, "export", {"request": {}}),
        (listen, "listener", {}),
    ):
        deployment = await flow.ato_deployment(
            flow.name,
            tags=deployment_tags(kind, settings),
            parameters=parameters,
            enforce_parameter_schema=False,  # a bad request is answered, not refused unheard
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        deployment_id = await service.aadd_deployment(deployment)
    await start_listener(deployment_id)
    await service.start()


def check(settings: Settings) -> None:
    """Say in a sentence what would otherwise be found out by a traceback.

    Raises:
        SetupError: naming what is missing.
    """
    if not settings.trigger_queue_url:
        raise SetupError("TRIGGER_QUEUE_URL is not set; the listener needs the queue's URL.")
    check_services()


def check_services() -> None:
    """Make sure that there is a Prefect API that answers, and that AWS credentials are found.

    Raises:
        SetupError: naming what is missing.
    """
    url = get_current_settings().api.url
    if not url:  # Prefect would start a temporary server
        raise SetupError("PREFECT_API_URL is not set; runs need a Prefect server that stays.")
    with get_client(sync_client=True) as prefect:
        try:
            prefect.read_flows(limit=1)
        except HTTPStatusError as error:
            raise SetupError(
                f"the Prefect API at {url} answers {error.response.status_code}; "
                "are PREFECT_API_KEY or PREFECT_API_AUTH_STRING right?"
            ) from error
        except TransportError as error:
            raise SetupError(f"the Prefect API at {url} does not answer ({error}).") from error
    if Aws().session.get_credentials() is None:
        raise SetupError("no AWS credentials were found, neither saved as a block nor here.")


async def start_listener(deployment: UUID) -> None:
    """Take up the listener's run that an earlier process left behind, or start one."""
    async with get_client() as prefect:
        left = await prefect.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED))
            ),
        )
        for run in left:
            await prefect.set_flow_run_state(run.id, AwaitingRetry(message="Served again"))
        if not left:
            await prefect.create_flow_run_from_deployment(deployment)


def sigterm_self(number: int, frame: FrameType | None) -> None:
    """Ctrl+C stops the service as systemd and ECS do."""
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, sigterm_self)
    try:
        checked = Settings.load()
        check(checked)
        with waits_for_prefect():
            asyncio.run(serve(checked))
    except SetupError as error:
        sys.exit(f"Cannot serve: {error}")
