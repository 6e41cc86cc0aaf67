"""The flow that turns trigger messages into runs of ``create-batches`` and answers for them.

Reads:      the trigger queue (``TRIGGER_QUEUE_URL``)
Writes:     one run of ``create-batches`` for each message; the failure callback of a run that
            cannot send its own
Triggered:  once, by ``python -m flows.serve`` or its deployment; it runs until it is stopped
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

from botocore.exceptions import NoCredentialsError
from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging import get_run_logger
from prefect.states import Failed

from blocks.saved import Aws
from flows.listening.clock import ServerClock
from flows.listening.heartbeats import Heartbeats, check_frequency
from flows.listening.intake import Intake, is_denied
from flows.listening.listener import Listener
from flows.listening.one_listener import is_taken_over, schedule_restart, shows_life
from flows.listening.setup import NO_CREDENTIALS, trigger_queue
from flows.support.attempt import is_deployed
from flows.support.log_context import label_lines
from flows.support.outage import FEW_RETRIES, Outage, waits_for_prefect
from flows.support.run_tags import documented
from splitter.aws import TriggerQueue
from splitter.errors import Kind, SetupError, is_kind, problem_of
from splitter.settings import Allowed, Settings

label_lines()

DEPLOYMENT = "create-batches/create-batches"


def restart_listener(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook of listen: the same run starts again after a delay."""
    if not flow_run.deployment_id:
        return
    with get_client(sync_client=True) as prefect:
        schedule_restart(prefect, flow_run.id, f"It ended {state.name}: {state.message}")


@documented
@flow(
    name="listen",
    flow_run_name="listen for exports",
    on_failure=[restart_listener],
    on_crashed=[restart_listener],
)
def listen(queue_url: str | None = None, deployment: str = DEPLOYMENT) -> None:
    """Turn trigger messages into runs of create-batches until this run is stopped.

    Takes no more than MAX_IN_FLIGHT messages at a time. A message that is not JSON, or that names
    no download and allowed queue to answer to, becomes a dead letter after a minute. A run that
    dies is tried again, MAX_ATTEMPTS in all; after that BIOSPEX gets a failure.

    **To pause everything**, cancel this run: messages wait in the queue. Retry it, or start a new
    run, to go on. (Prefect's own *Pause* ends after five minutes.)

    Args:
        queue_url: the trigger queue; TRIGGER_QUEUE_URL of the environment if not given.
        deployment: the deployment of create-batches that does the work.
    """
    try:
        listen_until_stopped(queue_url, deployment)
    except Exception as error:
        is_refused = is_denied(error) or is_kind(error, Kind.EXPIRED, Kind.REFUSED)
        if not (is_refused or isinstance(error, SetupError)):
            raise
        # A state instead of the exception: its sentence says all, a traceback would hide it.
        problem = problem_of(error)
        get_run_logger().error("%s %s", problem, problem.advice)
        return Failed(message=f"{problem} {problem.advice}")  # type: ignore[return-value]


def listen_until_stopped(queue_url: str | None, deployment: str) -> None:
    """Listen to the trigger queue until a signal, or another listener, ends it.

    Raises:
        SetupError: if the installation has a fault.
        Abort: if another process owns the state of this run.
    """
    if is_deployed():
        check_frequency()
    settings = Settings.load()
    allowed = Allowed()
    url = queue_url or trigger_queue(settings)
    queue = TriggerQueue(Aws().sqs(url), url, settings.visibility_timeout)
    clock = ServerClock()
    run = UUID(runtime.flow_run.id)
    with (
        clock.client() as prefect,
        shows_life(run),
        stopped_by_signal() as stopping,
        waits_for_prefect(FEW_RETRIES),  # because messages must be kept invisible meanwhile
    ):
        heartbeats = Heartbeats(prefect, run, clock)
        intake = Intake(prefect, deployment)
        listener = Listener(queue, prefect, intake, settings, allowed, heartbeats, clock)
        outage = Outage()
        get_run_logger().info("Listening to %s", url)
        is_checked = False
        try:
            while not stopping.is_set():
                with outage.wait_out_outage(stopping):
                    if not is_checked:
                        warn_about_configuration(queue, allowed)
                        is_checked = True
                    listener.extend_visibility()  # also while Prefect is away
                    if is_taken_over(prefect, clock):
                        get_run_logger().warning("A listener that started later takes over")
                        break
                    heartbeats.warn_of_silence()
                    listener.poll()
                    listener.receive(stopping)
            with outage.wait_out_outage(stopping):
                listener.poll()
        finally:
            with suppress(Exception):  # they come again when their visibility timeout is over
                listener.release()


def warn_about_configuration(queue: TriggerQueue, allowed: Allowed) -> None:
    """Warn about settings that are missing.

    Raises:
        SetupError: if there are no AWS credentials.
    """
    try:
        has_policy = queue.has_redrive_policy()
    except NoCredentialsError:
        raise SetupError(NO_CREDENTIALS) from None
    if not has_policy:
        get_run_logger().warning(
            "The queue %s has NO REDRIVE POLICY: messages that cannot be answered will come back "
            "for ever. Give it a dead-letter queue.",
            queue.url,
        )
    for variable, patterns in allowed:
        if patterns is None:
            get_run_logger().warning(
                "%s is not set: a trigger may name every one that the AWS credentials open",
                variable.upper(),
            )


@contextmanager
def stopped_by_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, in place of what Python and Prefect would raise."""
    stopping = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: stopping.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
