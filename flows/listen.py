"""The flow that turns trigger messages into runs of ``create-batches`` and sees them through.

Reads:      the trigger queue (``TRIGGER_QUEUE_URL``)
Writes:     one run of ``create-batches`` for each message; the failure callback of a run that
            died before it could send its own
Triggered:  once, by ``python -m flows.serve`` or its deployment; it runs until it is stopped

The message is the memory: it stays on the queue, invisible, until its run has ended and the
callback is out. A listener that dies loses nothing; the next one receives the message again and,
the run's idempotency key being the message's id, finds the same run.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from httpx import HTTPStatusError, TransportError
from prefect import flow, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.flows import Flow
from prefect.logging import get_run_logger
from prefect.states import AwaitingRetry

from blocks.saved import client, load_credentials
from flows.support.progress import best_effort
from flows.support.recovery import (
    SERVICE_STOPPED,
    cancel,
    has_called_back,
    heartbeat_timed_out,
    interrupt,
    mark_crashed,
    note_callback,
    resume,
)
from splitter import queues
from splitter.errors import SetupError, is_transient
from splitter.messages import Failure, ReplyAddress, title
from splitter.queues import Delivery, TriggerQueue
from splitter.settings import Allowed, Settings

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

DEPLOYMENT = "create-batches/biospex"

IDLE_WAIT = 10
"""Seconds of a long poll while no run is in flight; the process stops within it."""

BUSY_WAIT = 2
"""Seconds of a long poll between two looks at the runs in flight."""

SECONDS_BETWEEN_LOOKS = 30
"""Between two looks for the heartbeats of a run."""

TIME_FOR_HOOKS = timedelta(seconds=30)
"""A run that has just ended may be about to be resumed by its own hook."""

TIME_TO_START_HERE = timedelta(seconds=120)
"""Between the moment at which a service takes a run, without a work pool, and its start. One that
takes longer was taken by a service that has died since; START_TIMEOUT is for what a pool needs."""

TIME_TO_COME_BACK = timedelta(seconds=10)
"""Before a listener that died starts again."""


@dataclass
class Export:
    """A message in flight and the run that it became."""

    delivery: Delivery
    address: ReplyAddress
    flow_run_id: UUID
    kept: float
    looked: float


def restart_listener(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook of listen: the same run starts again, unless a person cancelled it."""
    if not flow_run.deployment_id:
        return
    with get_client(sync_client=True) as prefect:
        prefect.set_flow_run_state(
            flow_run.id,
            AwaitingRetry(
                scheduled_time=datetime.now(UTC) + TIME_TO_COME_BACK, message="Comes back"
            ),
        )


@flow(
    name="listen",
    flow_run_name="listen for exports",
    on_failure=[restart_listener],
    on_crashed=[restart_listener],
)
def listen(queue_url: str | None = None, deployment: str = DEPLOYMENT) -> None:
    """Turn trigger messages into runs of create-batches until this run is stopped.

    Takes no more than MAX_IN_FLIGHT messages at a time. A message that is not JSON, or that names
    no download and allowed queue to answer to, is left for the queue's redrive policy. A run that
    dies is resumed, MAX_ATTEMPTS in all, and if it cannot be, BIOSPEX is told so.

    **To pause everything**, cancel this run: messages wait in the queue. A new run goes on.

    Args:
        queue_url: the trigger queue; TRIGGER_QUEUE_URL of the environment if not given.
        deployment: the deployment of create-batches that does the work.
    """
    settings = Settings.load()
    url = queue_url or settings.trigger_queue_url
    if not url:
        raise SetupError("TRIGGER_QUEUE_URL is not set; the listener needs the queue's URL.")
    sqs = client(load_credentials(), "sqs", queues.CLIENT_CONFIG)
    queue = TriggerQueue(sqs, url, settings.visibility_timeout)
    allowed = Allowed()
    with get_client(sync_client=True) as prefect, stopped_by_sigterm() as stopping:
        listener = Listener(queue, sqs, prefect, deployment, settings, allowed)
        get_run_logger().info("Listening to %s", url)
        outage = Outage()
        succession = Succession(prefect)
        is_looked_at = False
        while not stopping.is_set():
            with outage.waited_out(stopping):
                if not is_looked_at:
                    warn_of_what_is_missing(queue, allowed)
                    is_looked_at = True
                match succession.heir():
                    case "this run, started again":
                        with suppress(SystemExit):  # of rich, where the reader of our log is dead
                            listener.stop()
                        os._exit(0)  # what becomes of the run is not for this process to say
                    case "another run":
                        get_run_logger().warning("A listener that started later has taken over")
                        break
                listener.watch()
                listener.take(stopping)
        with outage.waited_out(stopping):
            listener.stop()


def warn_of_what_is_missing(queue: TriggerQueue, allowed: Allowed) -> None:
    """Say what an operator may not have thought of."""
    if not queue.has_redrive_policy():
        get_run_logger().warning(
            "The queue %s has NO REDRIVE POLICY: messages that cannot be answered will come back "
            "for ever. Give it a dead-letter queue.",
            queue.url,
        )
    for variable, patterns in allowed:
        if patterns is None:
            get_run_logger().warning(
                "%s is not set: triggers may name any that the credentials reach", variable.upper()
            )


class Succession:
    """Of the listeners of one deployment, the one that started last stays."""

    def __init__(self, prefect: SyncPrefectClient) -> None:
        self._prefect = prefect
        self._looked = time.monotonic()
        self._logger = get_run_logger()

    def heir(self) -> Literal["this run, started again", "another run"] | None:
        """The later listener that is running, if there is one, where this one was thought dead.

        Ends the runs of earlier ones that are dead.
        """
        here = self._prefect.read_flow_run(UUID(runtime.flow_run.id))
        if here.run_count > runtime.flow_run.run_count:
            return "this run, started again"
        if not here.deployment_id or not here.start_time:
            return None
        running = self._prefect.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[here.deployment_id])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
            ),
        )
        started = {run.start_time: run for run in running if run.start_time}
        if max(started, default=here.start_time) > here.start_time:
            return "another run"
        moment = time.monotonic()
        if moment - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked = moment
            for start, run in started.items():
                if start < here.start_time and heartbeat_timed_out(self._prefect, run):
                    self._logger.warning("%s gave no sign of life; this run is its heir", run.name)
                    cancel(self._prefect, run, "Died; another listener has taken over")
        return None


class Outage:
    """Time without Prefect's API, SQS or the network: waited out, said once."""

    SECONDS_BETWEEN_TRIES = 5

    def __init__(self) -> None:
        self._lasts = False
        self._logger = get_run_logger()

    @contextmanager
    def waited_out(self, stopping: threading.Event) -> Iterator[None]:
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
            return
        if self._lasts:
            self._logger.info("All services answer again")
        self._lasts = False


def is_outage(error: BaseException) -> bool:
    """Whether a service, AWS or Prefect, is away; it can come back."""
    if isinstance(error, HTTPStatusError):
        return error.response.is_server_error or error.response.status_code == 429
    return isinstance(error, TransportError) or is_transient(error)


class Listener:
    """The messages in flight, between the queue and Prefect."""

    def __init__(
        self,
        queue: TriggerQueue,
        sqs: "SQSClient",
        prefect: SyncPrefectClient,
        deployment: str,
        settings: Settings,
        allowed: Allowed,
    ) -> None:
        self._queue = queue
        self._sqs = sqs
        self._prefect = prefect
        self._deployment = prefect.read_deployment_by_name(deployment).id
        self._max_in_flight = settings.max_in_flight
        self._start_timeout = timedelta(seconds=settings.start_timeout)
        self._run_timeout = timedelta(seconds=settings.run_timeout)
        self._allowed = allowed
        self._exports: dict[str, Export] = {}
        self._logger = get_run_logger()

    def take(self, stopping: threading.Event) -> None:
        """Receive what there is room for and start a run for each message."""
        room = self._max_in_flight - len(self._exports)
        if not room:
            stopping.wait(BUSY_WAIT)
            return
        for delivery in self._queue.receive(room, BUSY_WAIT if self._exports else IDLE_WAIT):
            try:
                self._start(delivery)
            except Exception as error:
                if is_outage(error):
                    raise
                self._logger.exception("Message %s is left for redrive", delivery.message_id)

    def watch(self) -> None:
        """Settle the runs that have ended; keep the messages of the others invisible."""
        if not self._exports:
            return
        wanted = [export.flow_run_id for export in self._exports.values()]
        runs = {
            run.id: run
            for run in self._prefect.read_flow_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=wanted))
            )
        }
        for message_id, export in list(self._exports.items()):
            if self._is_settled(export, runs.get(export.flow_run_id)):
                self._queue.delete(export.delivery)
                del self._exports[message_id]
            else:
                self._keep(export)

    def stop(self) -> None:
        """Settle what has ended and hand the rest to the next listener, without a delay."""
        self.watch()
        for export in self._exports.values():
            self._queue.release(export.delivery)
        self._logger.info("Stopped; %d messages go back to the queue", len(self._exports))

    def _start(self, delivery: Delivery) -> None:
        message = parse(delivery.body)
        address = self._allowed.reply_address(message)
        if address is None:
            self._logger.error(
                "Message %s is not JSON, or has no usable downloadId and updatesQueueUrl that "
                "ALLOWED_QUEUES allows, so it cannot be answered; it is left for the queue's "
                "redrive policy",
                delivery.message_id,
            )
            return
        run = self._prefect.create_flow_run_from_deployment(
            self._deployment,
            parameters={"request": message},
            name=title(message),
            tags=["export", f"download-{address.download_id}"],
            idempotency_key=delivery.message_id,
        )
        self._exports[delivery.message_id] = Export(
            delivery, address, run.id, kept=delivery.received, looked=delivery.received
        )
        self._logger.info("Message %s is flow run %s", delivery.message_id, run.name)

    def _keep(self, export: Export) -> None:
        moment = time.monotonic()
        if moment - export.kept < self._queue.visibility_timeout / 3:
            return
        if self._queue.keep(export.delivery):
            export.kept = moment

    def _is_settled(self, export: Export, run: FlowRun | None) -> bool:
        """Whether a run has ended and its callback is out; brings it nearer to that if it can."""
        if run is None or run.state is None:
            return self._give_up(export, None, "its run was deleted")
        age = datetime.now(UTC) - run.state.timestamp
        if run.state.is_final():
            if has_called_back(self._prefect, run):
                return True
            if run.state.is_cancelled() and run.state.message != SERVICE_STOPPED:
                return self._give_up(export, run, "its run was cancelled")
            if age < TIME_FOR_HOOKS:
                return False
            if resume(self._prefect, run, f"Resumed by the listener after: {run.state.message}"):
                self._logger.warning("%s %s; it is resumed", run.name, run.state_name)
                return False
            return self._give_up(export, run, f"its run {run.state_name} too often")
        if run.state.is_running():
            if age > self._run_timeout:
                self._logger.warning("%s takes too long; it is interrupted", run.name)
                interrupt(self._prefect, run)
            elif self._heartbeats_are_due(export) and heartbeat_timed_out(self._prefect, run):
                self._logger.warning("%s gives no sign of life", run.name)
                mark_crashed(self._prefect, run, "Its process gave no sign of life for too long")
        elif run.state.is_pending() and not run.work_pool_name and age > TIME_TO_START_HERE:
            self._logger.warning("%s was taken, but not started", run.name)
            mark_crashed(self._prefect, run, "The service that took it did not start it")
        elif age > self._start_timeout:
            cancel(self._prefect, run, f"{run.state_name} for too long")
            return self._give_up(export, run, f"its run stayed {run.state_name} for too long")
        return False

    def _heartbeats_are_due(self, export: Export) -> bool:
        moment = time.monotonic()
        if moment - export.looked < SECONDS_BETWEEN_LOOKS:
            return False
        export.looked = moment
        return True

    def _give_up(self, export: Export, run: FlowRun | None, reason: str) -> bool:
        """Send the failure callback that no run will send any more."""
        self._logger.error("Giving up on message %s: %s", export.delivery.message_id, reason)
        error = f"The batches could not be made ({reason}); please ask for them again."
        failure = Failure(download_id=export.address.download_id, error=error)
        queues.send_callback(self._sqs, export.address, failure)
        if run:
            # The message is deleted next; raising here would send the callback once more.
            with best_effort("The callback, which is sent,", self._logger):
                note_callback(self._prefect, run, failure)
        return True


def parse(body: str) -> Any:
    """A message's JSON; None for what is none: JavaScript's NaN, half a surrogate pair."""
    try:
        message = json.loads(body, parse_constant=lambda _: json.loads(""))
        json.dumps(message, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return message


@contextmanager
def stopped_by_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, in place of the exception that Prefect would raise."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, previous)
