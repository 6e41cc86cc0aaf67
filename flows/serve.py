"""Serves both deployments from one process: ``python -m flows.serve``.

Reads:      the environment: a Prefect API, AWS, ``TRIGGER_QUEUE_URL``
Writes:     the deployments ``create-batches/create-batches`` and ``listen/listen``, a run of the
            latter
Triggered:  by a person, a container or a systemd unit; it runs until it is stopped
"""

import asyncio
import signal
import sys
from uuid import UUID

from anyio import create_task_group, sleep, to_thread
from prefect.client.orchestration import get_client
from prefect.logging import get_logger
from prefect.runner import Runner
from prefect.types.entrypoint import EntrypointType

from flows.create_batches import create_batches
from flows.listen import listen
from flows.listening.clock import ServerClock
from flows.listening.heartbeats import FREQUENCY
from flows.listening.one_listener import begin, keep_one
from flows.listening.setup import check_services, trigger_queue
from flows.support.outage import FEW_RETRIES, waits_for_prefect
from flows.support.run_tags import deployment_tags
from splitter.errors import SetupError
from splitter.settings import Settings

SECONDS_BETWEEN_LOOKS = 10
"""Between two looks whether a listener runs."""

log = get_logger("serve")


async def serve(settings: Settings) -> None:
    """Register both deployments and run their runs, one of them the listener, until SIGTERM.

    Args:
        settings: checked ones.
    """
    service = Runner(
        name="biospex",
        limit=settings.max_in_flight + 1,  # every export in flight, and the listener
        query_seconds=1,
        pause_on_shutdown=False,
        heartbeat_seconds=FREQUENCY,
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
    try:
        with waits_for_prefect(FEW_RETRIES), get_client(sync_client=True) as prefect:
            begin(prefect, deployment_id)
    except Exception as error:  # keep_listening finds the listener later, and exports go on
        log.warning("The listener was not started at once: %r", error)
    async with create_task_group() as tasks:
        tasks.start_soon(keep_listening, deployment_id, service)
        await service.start()
        tasks.cancel_scope.cancel()


async def keep_listening(deployment: UUID, service: Runner) -> None:
    """Make sure, every few seconds until the service stops, that one listener runs.

    Nothing else in the service depends on it, so it survives any error and logs it once.
    """
    clock = ServerClock()
    logged = ""
    with clock.client() as prefect, waits_for_prefect(FEW_RETRIES):
        while not service.stopping:
            try:
                await to_thread.run_sync(keep_one, prefect, deployment, clock)
                logged = ""
            except Exception as error:
                if type(error).__name__ != logged:
                    log.warning("Cannot look after the listener for now: %r", error)
                logged = type(error).__name__
            await sleep(SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    # Ctrl+C stops the service as systemd and ECS do.
    signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        checked = Settings.load()
        trigger_queue(checked)
        check_services()
        with waits_for_prefect():
            asyncio.run(serve(checked))
    except SetupError as error:
        sys.exit(f"Cannot serve: {error}")
