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
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.logging import get_run_logger

from blocks.saved import client, load_credentials
from flows.splitter import queues
from flows.splitter.errors import SetupError
from flows.splitter.messages import Failure, ReplyAddress, title
from flows.splitter.queues import Delivery, TriggerQueue
from flows.splitter.settings import Settings
from flows.summary import CALLBACK_KEY

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

DEPLOYMENT = "create-batches/biospex"

IDLE_WAIT = 10
"""Seconds of a long poll while no run is in flight; the process stops within it."""

BUSY_WAIT = 2
"""Seconds of a long poll between two looks at the runs in flight."""


@dataclass
class Export:
    """A message in flight and the run that it became."""

    delivery: Delivery
    address: ReplyAddress
    flow_run_id: UUID
    kept: float


@flow(name="listen", flow_run_name="listen for exports")
def listen(queue_url: str | None = None, deployment: str = DEPLOYMENT) -> None:
    """Turn trigger messages into runs of create-batches until this run is stopped.

    Takes no more than MAX_IN_FLIGHT messages at a time. A message that is not JSON, or that names
    no download and queue to answer to, is left for the queue's redrive policy.

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
    if not queue.has_redrive_policy():
        get_run_logger().warning(
            "The queue %s has NO REDRIVE POLICY: messages that cannot be answered will come back "
            "for ever. Give it a dead-letter queue.",
            url,
        )
    with get_client(sync_client=True) as prefect, stopped_by_sigterm() as stopping:
        listener = Listener(queue, sqs, prefect, deployment, settings.max_in_flight)
        get_run_logger().info("Listening to %s", url)
        while not stopping.is_set():
            listener.watch()
            listener.take(stopping)
        listener.stop()


class Listener:
    """The messages in flight, between the queue and Prefect."""

    def __init__(
        self,
        queue: TriggerQueue,
        sqs: "SQSClient",
        prefect: SyncPrefectClient,
        deployment: str,
        max_in_flight: int,
    ) -> None:
        self._queue = queue
        self._sqs = sqs
        self._prefect = prefect
        self._deployment = prefect.read_deployment_by_name(deployment).id
        self._max_in_flight = max_in_flight
        self._exports: dict[str, Export] = {}
        self._logger = get_run_logger()

    def take(self, stopping: threading.Event) -> None:
        """Receive what there is room for and start a run for each message."""
        room = self._max_in_flight - len(self._exports)
        if not room:
            stopping.wait(BUSY_WAIT)
            return
        for delivery in self._queue.receive(room, BUSY_WAIT if self._exports else IDLE_WAIT):
            self._start(delivery)

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
            run = runs.get(export.flow_run_id)
            if run is None or (run.state and run.state.is_final()):
                self._settle(export, run)
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
        address = ReplyAddress.of(message)
        if address is None:
            self._logger.error(
                "Message %s is not JSON, or has no usable downloadId and updatesQueueUrl, so it "
                "cannot be answered; it is left for the queue's redrive policy",
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
            delivery, address, run.id, kept=delivery.received
        )
        self._logger.info("Message %s is flow run %s", delivery.message_id, run.name)

    def _keep(self, export: Export) -> None:
        now = time.monotonic()
        if now - export.kept < self._queue.visibility_timeout / 3:
            return
        if self._queue.keep(export.delivery):
            export.kept = now

    def _settle(self, export: Export, run: FlowRun | None) -> None:
        if not self._has_called_back(run):
            end = f"its run {run.state_name} before the end" if run else "its run was deleted"
            self._logger.error("%s: %s; sending a failure", export.delivery.message_id, end)
            error = (
                f"The batches could not be made ({end}); "
                "please ask for them again or tell the operator."
            )
            queues.send_callback(
                self._sqs,
                export.address,
                Failure(download_id=export.address.download_id, error=error),
            )
        self._queue.delete(export.delivery)

    def _has_called_back(self, run: FlowRun | None) -> bool:
        """Whether a run that has ended sent its callback; one that completed certainly did."""
        if run is None:
            return False
        return run.state_type == StateType.COMPLETED or bool(
            self._prefect.read_artifacts(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
                artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[CALLBACK_KEY])),
            )
        )


def parse(body: str) -> Any:
    """A message's JSON; None for what is none, which includes JavaScript's NaN."""
    try:
        return json.loads(body, parse_constant=lambda _: json.loads(""))
    except ValueError:
        return None


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
