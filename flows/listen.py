"""The flow that turns trigger messages into runs of ``create-batches`` and sees them through.

Reads:      the trigger queue (``TRIGGER_QUEUE_URL``)
Writes:     one run of ``create-batches`` for each message; the failure callback of a run that
            cannot send its own
Triggered:  once, by ``python -m flows.serve`` or its deployment; it runs until it is stopped

The message is the lease: it stays on the queue, invisible, until its run has ended and the
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
from typing import Any
from uuid import UUID

from botocore.exceptions import NoCredentialsError
from httpx import HTTPStatusError
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.logging import get_run_logger
from prefect.states import AwaitingRetry, Failed

from blocks.saved import Aws
from flows.support import decision
from flows.support.callbacks import client_for
from flows.support.finding import documented, download_tag
from flows.support.outage import BRIEF, Outage, is_outage, waits_for_prefect
from flows.support.progress import best_effort
from flows.support.recovery import (
    force_cancelled,
    mark_crashed,
    note_callback,
    observe,
    request_cancellation,
    retry,
)
from flows.support.takeover import Standing, Takeover
from splitter.aws import sqs as queues
from splitter.aws.sqs import Delivery, TriggerQueue
from splitter.errors import SetupError, explain
from splitter.messages import (
    UNANSWERABLE,
    Failure,
    ReplyAddress,
    find_flaw,
    find_wrapping,
    parse_body,
    title,
)
from splitter.settings import Allowed, Settings

DEPLOYMENT = "create-batches/create-batches"

IDLE_WAIT = 10
"""Seconds of a long poll while no run is in flight; the process stops within it."""

BUSY_WAIT = 2
"""Seconds of a long poll between two looks at the runs in flight."""

LONGEST_WAIT = 15 * 60
"""Seconds for which a message is kept whose run Prefect does not make; then it is answered."""

SECONDS_BETWEEN_LOOKS = 30
"""Between two looks at a run whose state stays; another state is looked at at once."""

TIME_TO_RESTART = timedelta(seconds=10)
"""Before a listener that died starts again."""


@dataclass
class InFlight:
    """A message in flight and the run that it became.

    Attributes:
        visibility_extended_at: moment of ``time.monotonic()``, as the next one.
        next_look: when the run is looked at again, unless its state changes.
        state: id of the state in which the run was last looked at.
    """

    delivery: Delivery
    address: ReplyAddress
    flow_run_id: UUID
    visibility_extended_at: float
    next_look: float = 0.0
    state: UUID | None = None


def restart_listener(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook of listen: the same run starts again, unless a person cancelled it."""
    if not flow_run.deployment_id:
        return
    with get_client(sync_client=True) as prefect:
        prefect.set_flow_run_state(
            flow_run.id,
            AwaitingRetry(scheduled_time=datetime.now(UTC) + TIME_TO_RESTART, message="Restarted"),
        )


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
    no download and allowed queue to answer to, is left for the queue's redrive policy. A run that
    dies is tried again, MAX_ATTEMPTS in all, and if it cannot be, BIOSPEX is told so.

    **To pause everything**, suspend or cancel this run: messages wait in the queue. Resume it, or
    start a new run, and it goes on.

    Args:
        queue_url: the trigger queue; TRIGGER_QUEUE_URL of the environment if not given.
        deployment: the deployment of create-batches that does the work.
    """
    settings = Settings.load()
    url = queue_url or settings.trigger_queue_url
    if not url:
        raise SetupError("TRIGGER_QUEUE_URL is not set; the listener needs the queue's URL.")
    sqs = Aws().client("sqs", queues.CLIENT_CONFIG, queues.region_of(url))
    queue = TriggerQueue(sqs, url, settings.visibility_timeout)
    allowed = Allowed()
    with (
        get_client(sync_client=True) as prefect,
        stopped_by_signal() as stopping,
        waits_for_prefect(BRIEF),  # for messages are to be kept invisible meanwhile
    ):
        outage = Outage()
        listener = Listener(queue, prefect, deployment, settings, allowed, outage)
        get_run_logger().info("Listening to %s", url)
        takeover = Takeover(prefect)
        is_looked_at = False
        while not stopping.is_set():
            with outage.wait_out_outage(stopping):
                if not is_looked_at:
                    warn_of_what_is_missing(queue, allowed)
                    is_looked_at = True
                listener.extend_visibility()  # also while Prefect is away
                standing = takeover.standing(outage.reachable_since)
                if standing is Standing.NOT_RUNNING:
                    with suppress(SystemExit):  # of rich, where the reader of our log is dead
                        listener.stop()
                    os._exit(0)  # what becomes of the run is not for this process to say
                if standing is Standing.TAKEN_OVER:
                    get_run_logger().warning("A listener that started later has taken over")
                    break
                listener.poll()
                listener.receive(stopping)
        with outage.wait_out_outage(stopping):
            listener.stop()


def warn_of_what_is_missing(queue: TriggerQueue, allowed: Allowed) -> None:
    """Say what an operator may not have thought of.

    Raises:
        SetupError: if there are no AWS credentials.
    """
    try:
        has_policy = queue.has_redrive_policy()
    except NoCredentialsError:
        raise SetupError("No AWS credentials were found; the listener needs them.") from None
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


@dataclass
class Waiting:
    """A message whose run is not made yet."""

    delivery: Delivery
    visibility_extended_at: float


def _is_refused(error: Exception) -> bool:
    """Whether Prefect's API does not let this listener in."""
    return isinstance(error, HTTPStatusError) and error.response.status_code in (401, 403)


def _is_deployment_gone(error: Exception) -> bool:
    if isinstance(error, HTTPStatusError):
        return error.response.status_code == 404
    return isinstance(error, ObjectNotFound)


class Listener:
    """The messages in flight, between the queue and Prefect.

    What goes wrong with one of them stays with it: whatever is raised, the others go on.
    """

    def __init__(
        self,
        queue: TriggerQueue,
        prefect: SyncPrefectClient,
        deployment: str,
        settings: Settings,
        allowed: Allowed,
        outage: Outage,
    ) -> None:
        self._queue = queue
        self._prefect = prefect
        self._deployment_name = deployment
        self._deployment = prefect.read_deployment_by_name(deployment).id
        self._settings = settings
        self._allowed = allowed
        self._outage = outage
        self._in_flight: dict[str, InFlight] = {}
        self._waiting: dict[str, Waiting] = {}
        self._logger = get_run_logger()

    def receive(self, stopping: threading.Event) -> None:
        """Receive what there is room for and start a run for each message."""
        if self._waiting:
            self._start_waiting()
        room = self._settings.max_in_flight - len(self._in_flight) - len(self._waiting)
        if room <= 0:
            stopping.wait(BUSY_WAIT)
            return
        for delivery in self._queue.receive(room, BUSY_WAIT if self._in_flight else IDLE_WAIT):
            self._waiting[delivery.message_id] = Waiting(delivery, delivery.received)
        self._start_waiting()

    def _start_waiting(self) -> None:
        """Start a run for each message that has none yet.

        Raises:
            Exception: an outage, if Prefect made no run because of one. The messages are kept, so
                it costs them no receive.
        """
        outage: Exception | None = None
        for waiting in list(self._waiting.values()):
            delivery = waiting.delivery
            try:
                self._start(delivery)
            except Exception as error:
                if _is_refused(error):
                    raise  # of each message; the listener starts again with what it is given then
                if is_outage(error) and time.monotonic() - delivery.received < LONGEST_WAIT:
                    outage = error
                    continue
                if _is_deployment_gone(error):
                    # It may have been made anew, under the same name; if not, the listener fails.
                    found = self._prefect.read_deployment_by_name(self._deployment_name)
                    self._deployment = found.id
                    outage = error
                    continue
                self._answer_fault(delivery, error)
            del self._waiting[delivery.message_id]
        if outage is not None and is_outage(outage):
            raise outage

    def extend_visibility(self) -> None:
        """Keep the messages in flight, and those that wait for Prefect, invisible."""
        moment = time.monotonic()
        held: list[InFlight | Waiting] = [*self._in_flight.values(), *self._waiting.values()]
        for export in held:
            if moment - export.visibility_extended_at < self._queue.visibility_timeout / 3:
                continue
            if self._queue.extend_visibility(export.delivery):
                export.visibility_extended_at = moment

    def poll(self) -> None:
        """See to the runs in flight that want something."""
        if not self._in_flight:
            return
        wanted = [export.flow_run_id for export in self._in_flight.values()]
        runs = {
            run.id: run
            for run in self._prefect.read_flow_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=wanted))
            )
        }
        for export in list(self._in_flight.values()):
            run = runs.get(export.flow_run_id)
            state = run.state.id if run and run.state else None
            moment = time.monotonic()
            if state == export.state and moment < export.next_look:
                continue
            export.state, export.next_look = state, moment + SECONDS_BETWEEN_LOOKS
            try:
                self._reconcile(export, run)
            except Exception as error:
                if is_outage(error):
                    self._logger.warning("%s has to wait: %r", export.delivery.message_id, error)
                else:
                    self._forget(export)
                    self._leave(export.delivery, repr(error))

    def stop(self) -> None:
        """Settle what has ended and hand the rest to the next listener, without a delay."""
        self.poll()
        held: list[InFlight | Waiting] = [*self._in_flight.values(), *self._waiting.values()]
        for export in held:
            self._queue.release(export.delivery)
        self._logger.info("Stopped; %d messages go back to the queue", len(held))

    def _start(self, delivery: Delivery) -> None:
        message = parse_body(delivery.body)
        address = self._allowed.reply_address(message)
        if address is None:
            self._leave(delivery, str(find_wrapping(message) or UNANSWERABLE()))
            return
        flaw = find_flaw(message)
        # As a text that Prefect reads and never looks into: a message is data, and what it holds
        # is neither a variable's name nor a template.
        request = {"__prefect_kind": "json", "value": json.dumps(message)}
        run = self._prefect.create_flow_run_from_deployment(
            self._deployment,
            parameters={} if flaw else {"request": request},
            state=Failed(name=decision.REFUSED, message=str(flaw)) if flaw else None,
            name=title(message),
            tags=["export", download_tag(address)],
            idempotency_key=delivery.message_id,
        )
        self._in_flight[delivery.message_id] = InFlight(
            delivery, address, run.id, visibility_extended_at=delivery.received
        )
        self._logger.info("Message %s is flow run %s", delivery.message_id, run.name)

    def _answer_fault(self, delivery: Delivery, error: Exception) -> None:
        """Answer a message whose run cannot be made, if it names a place to answer to."""
        address = self._allowed.reply_address(parse_body(delivery.body))
        if address is None:
            self._leave(delivery, f"its run could not be made: {error!r}")
            return
        sentence = explain(error)
        self._logger.error("Giving up on message %s: %s", delivery.message_id, sentence)
        failure = Failure(download_id=address.download_id, error=sentence)
        try:
            queues.send_callback(client_for(Aws(), address), address, failure)
            self._queue.acknowledge(delivery)
        except Exception as unsent:
            self._leave(delivery, f"it could not be answered: {unsent!r}")

    def _reconcile(self, export: InFlight, run: FlowRun | None) -> None:
        """Do what is decided about one run."""
        observed = observe(self._prefect, run, self._outage.reachable_since)
        verdict = decision.decide(observed, self._settings)
        match verdict:
            case decision.Acknowledge():
                if run and run.state:
                    self._logger.info("%s: %s, %s", run.name, run.state.name, run.state.message)
                self._settle(export)
                return
            case decision.Fail(sentence):
                self._give_up(export, run, sentence)
                return
        if run is None:
            return
        match verdict:
            case decision.Retry(reason):
                self._logger.warning("%s is tried again. %s", run.name, reason)
                retry(self._prefect, run, verdict)
            case decision.MarkCrashed(reason):
                self._logger.warning("%s is marked crashed. %s", run.name, reason)
                mark_crashed(self._prefect, run, reason)
            case decision.Cancel(reason):
                self._logger.warning("%s is cancelled. %s", run.name, reason)
                request_cancellation(self._prefect, run, reason)

    def _give_up(self, export: InFlight, run: FlowRun | None, sentence: str) -> None:
        """Send the failure callback that no run will send any more."""
        self._logger.error("Giving up on message %s: %s", export.delivery.message_id, sentence)
        if run and run.state and not run.state.is_final():
            force_cancelled(self._prefect, run, sentence)
        failure = Failure(download_id=export.address.download_id, error=sentence)
        queues.send_callback(client_for(Aws(), export.address), export.address, failure)
        if run:
            # The message is deleted next; raising here would send the callback once more.
            with best_effort("The callback, which is sent,", self._logger):
                note_callback(self._prefect, run, failure)
        self._settle(export)

    def _settle(self, export: InFlight) -> None:
        self._forget(export)
        self._queue.acknowledge(export.delivery)

    def _forget(self, export: InFlight) -> None:
        self._in_flight.pop(export.delivery.message_id, None)

    def _leave(self, delivery: Delivery, why: str) -> None:
        """Leave a message to the redrive policy, with what an operator may want to know."""
        # A warning at each receive; the alarm of the dead-letter queue reports the final one.
        self._logger.warning(
            "Message %s is left for the queue's redrive policy: %s", delivery.message_id, why
        )
        with suppress(Exception):  # it then comes again when its visibility timeout is over
            self._queue.leave_to_redrive(delivery)


@contextmanager
def stopped_by_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, in place of what Python and Prefect would raise."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
