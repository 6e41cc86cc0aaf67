"""Both deployments served from one process: ``python -m flows.serve``.

Reads:      the environment: a Prefect API, AWS, ``TRIGGER_QUEUE_URL``
Writes:     the deployments ``create-batches/biospex`` and ``listen/biospex``, one run of the latter
Triggered:  by a person, a container or a systemd unit; it runs until it is stopped
"""

import asyncio
import sys
from uuid import UUID

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
from prefect.states import AwaitingRetry
from prefect.types.entrypoint import EntrypointType

from flows.create_batches import create_batches
from flows.listen import listen
from splitter.errors import SetupError
from splitter.settings import Settings

UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED, StateType.PAUSED]


class Service(Runner):
    """A runner that stops its flow runs when it is stopped.

    Prefect 3.8's own handler of SIGTERM calls an asynchronous method without awaiting it, so the
    children are killed and their runs stay Running for ever.
    """

    def handle_sigterm(self, *_: object) -> None:
        self.execute_in_background(self.astop)


async def serve(settings: Settings) -> None:
    """Register both deployments, set the listener going and run what comes, until SIGTERM.

    Raises:
        SetupError: if the listener would have no queue.
    """
    if not settings.trigger_queue_url:
        raise SetupError("TRIGGER_QUEUE_URL is not set; the listener needs the queue's URL.")
    service = Service(
        name="biospex",
        limit=settings.max_in_flight + 1,  # every export in flight, and the listener
        query_seconds=2,
        pause_on_shutdown=False,
    )
    for flow in (create_batches, listen):
        deployment = await flow.ato_deployment(
            "biospex",
            tags=["biospex"],
            enforce_parameter_schema=False,  # a bad request is answered, not refused unheard
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        deployment_id = await service.aadd_deployment(deployment)
    await start_listener(deployment_id)
    await service.start()


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


if __name__ == "__main__":
    try:
        asyncio.run(serve(Settings.load()))
    except SetupError as error:
        sys.exit(f"Cannot serve: {error}")
