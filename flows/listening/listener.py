"""Holds the messages in flight, between the trigger queue and the runs of create-batches.

The message is the lease: it stays on the queue, invisible, until its run has ended and the callback
is sent. A listener that dies loses nothing; the next one receives the message again and, because
the run's idempotency key is the message's id, finds the same run.
"""

import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import AwaitingRetry, Cancelling, Crashed

from blocks.saved import Aws
from flows.listening import decision
from flows.listening.clock import ServerClock
from flows.listening.heartbeats import Heartbeats
from flows.listening.intake import Held, Intake, NoRunError, is_denied
from flows.listening.processes import end_leftovers, end_run
from flows.listening.recovery import force_cancelled, note_callback, observe
from flows.run_page.progress import best_effort
from flows.support.outage import is_outage
from splitter.aws import CallbackError, CallbackQueue, Delivery, TriggerQueue
from splitter.errors import Kind, SetupError, explain, is_kind
from splitter.messages import UNANSWERABLE, Failure, find_wrapping, parse_body
from splitter.settings import Allowed, Settings

IDLE_WAIT = 10
"""Seconds of a long poll while no run is in flight; the process stops within it."""

BUSY_WAIT = 2
"""Seconds of a long poll between two looks at the runs in flight."""

SECONDS_BETWEEN_LOOKS = 30
"""Seconds between two checks of a run in the same state; a new state is checked at once."""

SECONDS_BETWEEN_STARTS = 1
"""Seconds between two starts on this machine: several interpreters at once start slowly."""

LARGEST_SPREAD = 6
"""Seconds over which the next attempts of several runs are spread."""


@dataclass
class Listener:
    """The messages in flight. An error that concerns one of them does not affect the others."""

    queue: TriggerQueue
    prefect: SyncPrefectClient
    intake: Intake
    settings: Settings
    allowed: Allowed
    heartbeats: Heartbeats
    clock: ServerClock
    held: dict[str, Held] = field(default_factory=dict, init=False)
    unacknowledged: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._logger = get_run_logger()

    def receive(self, stopping: threading.Event) -> None:
        """Receive as many messages as there is room for and create a run for each.

        Raises:
            Exception: if Prefect creates no runs. The messages are kept, so it costs no receive.
        """
        self._create_runs(stopping)
        room = self.settings.max_in_flight - len(self.held)
        if room <= 0:
            stopping.wait(BUSY_WAIT)
            return
        for delivery in self.queue.receive(room, BUSY_WAIT if self.held else IDLE_WAIT):
            message = parse_body(delivery.body)
            if address := self.allowed.reply_address(message):
                held = Held(delivery, message, address, delivery.received)
                self.held[delivery.message_id] = held
            else:
                self._reject(delivery, str(find_wrapping(message) or UNANSWERABLE()))
        self._create_runs(stopping)

    def _create_runs(self, stopping: threading.Event) -> None:
        waiting = [held for held in self.held.values() if not held.run_id]
        # Those that were refused least come first, so that one bad message delays no other.
        for held in sorted(waiting, key=lambda held: held.refusals):
            message = held.delivery.message_id
            if message in self.unacknowledged:
                self._acknowledge(held.delivery)
                continue
            self.extend_visibility()
            try:
                run = self.intake.create_run(held)
            except NoRunError as error:
                del self.held[message]  # unless its failure can be sent, it is delivered again
                self._give_up(held, None, str(error))
                continue
            if run is None:
                if held.refusals == 1:
                    self._logger.warning("Prefect answers 404 to the run of message %s", message)
                continue
            held.run_id = run.id
            self._logger.info("Message %s is flow run %s", message, run.name)
            if not self.intake.has_pool:
                stopping.wait(SECONDS_BETWEEN_STARTS)

    def extend_visibility(self) -> None:
        """Keep all messages invisible that this listener holds."""
        moment = time.monotonic()
        for held in self.held.values():
            if moment - held.visibility_extended_at < self.queue.visibility_timeout / 3:
                continue
            if self.queue.extend_visibility(held.delivery):
                held.visibility_extended_at = moment

    def poll(self) -> None:
        """Look at the runs in flight whose state is new, and at the others every 30 s."""
        in_flight = {held.run_id: held for held in self.held.values() if held.run_id}
        if not in_flight:
            return
        wanted = FlowRunFilter.model_validate({"id": {"any_": list(in_flight)}})
        runs = {run.id: run for run in self.prefect.read_flow_runs(flow_run_filter=wanted)}
        for run_id, held in in_flight.items():
            run = runs.get(run_id)
            state = run.state.id if run and run.state else None
            moment = time.monotonic()
            if state == held.state_id and moment < held.next_look:
                continue
            held.state_id, held.next_look = state, moment + SECONDS_BETWEEN_LOOKS
            self.extend_visibility()  # because each look can take seconds
            try:
                self._reconcile(held, run)
            except Exception as error:
                self._handle(error, held, run)

    def release(self) -> None:
        """Let the next listener have all messages at once."""
        for held in self.held.values():
            self.queue.release(held.delivery)
        self._logger.info("Stopped; %d messages go back to the queue", len(self.held))

    def _reconcile(self, held: Held, run: FlowRun | None) -> None:
        """Carry out the decision about one run."""
        observed = observe(self.prefect, run, self.heartbeats, self.clock)
        match decision.decide(observed, self.settings):
            case decision.Fail(sentence):
                self._give_up(held, run, sentence)
            case _ if run is None or run.state is None:
                pass  # the decision about a deleted run is Fail
            case decision.Acknowledge():
                self._logger.info("%s: %s, %s", run.name, run.state.name, run.state.message)
                self._acknowledge(held.delivery)
            case decision.Extend(reason):
                if reason and reason != held.waits_for:
                    self._logger.info("%s waits for %s", run.name, reason)
                held.waits_for = reason
                end_leftovers(run, self.clock.now(), self._logger)
            case decision.Retry(reason, delay):
                self._logger.warning("%s is tried again. %s", run.name, reason)
                # Runs that ended together, with their service, do not start together.
                when = self.clock.now() + delay + timedelta(seconds=run.id.int % LARGEST_SPREAD)
                again: State[Any] = AwaitingRetry(scheduled_time=when, message=reason)
                self.prefect.set_flow_run_state(run.id, again)
            case decision.MarkCrashed(reason):
                self._logger.warning("%s is marked crashed. %s", run.name, reason)
                self.prefect.set_flow_run_state(run.id, Crashed(message=reason), force=True)
                end_run(run, self._logger)
            case decision.Cancel(reason):
                self._logger.warning("%s is cancelled. %s", run.name, reason)
                self.prefect.set_flow_run_state(run.id, Cancelling(message=reason))

    def _handle(self, error: Exception, held: Held, run: FlowRun | None) -> None:
        """Wait or answer the message, by what the error of its run concerns.

        Raises:
            Exception: the error, if it concerns the installation and so every message.
        """
        message = held.delivery.message_id
        if is_outage(error) or message in self.unacknowledged:
            self._logger.warning("Message %s has to wait: %r", message, error)
        elif isinstance(error, SetupError) or is_denied(error) or is_kind(error, Kind.EXPIRED):
            raise error
        elif isinstance(error, ObjectNotFound):
            self._logger.warning("The run of message %s was deleted", message)  # the next look
        else:
            self._logger.error("Unexpected error about message %s", message, exc_info=error)
            try:
                self._give_up(held, run, explain(error))
            except Exception as unsent:
                if is_outage(unsent):  # still in flight: the next look tries again
                    self._logger.warning("Message %s has to wait: %r", message, unsent)
                else:
                    self._reject(held.delivery, repr(unsent))

    def _give_up(self, held: Held, run: FlowRun | None, sentence: str) -> None:
        """Send the failure that no run will send."""
        self._logger.error("Giving up on message %s: %s", held.delivery.message_id, sentence)
        if run and run.state and not run.state.is_final():
            force_cancelled(self.prefect, run, sentence)
        failure = Failure(download_id=held.address.download_id, error=sentence)
        try:
            CallbackQueue(Aws().sqs, held.address).send(failure)
        except CallbackError as unsent:
            self._reject(held.delivery, str(unsent))
            return
        if run:
            # The message is deleted next; an error here would send the callback once more.
            with best_effort("The callback, which was sent,", self._logger, waits=False):
                note_callback(self.prefect, run, failure)
        self._acknowledge(held.delivery)

    def _acknowledge(self, delivery: Delivery) -> None:
        """Delete a message that is answered; after an outage, when it is received again."""
        self.held.pop(delivery.message_id, None)
        self.unacknowledged.add(delivery.message_id)
        if self.queue.acknowledge(delivery):
            self.unacknowledged.remove(delivery.message_id)

    def _reject(self, delivery: Delivery, why: str) -> None:
        """Log why a message cannot be answered, and move it to the dead-letter queue in time."""
        self.held.pop(delivery.message_id, None)
        is_moved = False
        try:
            is_moved = self.queue.reject(delivery)
        except Exception as error:  # it comes again when its visibility timeout is over
            self._logger.error("A message cannot be moved to the dead-letter queue: %r", error)
        if is_moved:
            self._logger.error("Message %s is now a dead letter: %s", delivery.message_id, why)
        else:
            self._logger.warning("Message %s is put off: %s", delivery.message_id, why)
