"""Creates the run of each trigger message."""

import json
import time
from dataclasses import dataclass
from uuid import UUID

from httpx import HTTPStatusError
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.states import Failed

from flows.listening import decision
from flows.listening.heartbeats import HEARTBEAT_ENVIRONMENT
from flows.support.outage import is_outage
from flows.support.run_tags import download_tag
from splitter.aws import Delivery
from splitter.errors import SetupError, explain
from splitter.messages import (
    UNANSWERABLE,
    ReplyAddress,
    find_flaw,
    find_wrapping,
    parse_body,
    title,
)
from splitter.sentences import Actor, Sentence
from splitter.settings import Allowed

LONGEST_REFUSAL = 15 * 60
"""Seconds for which Prefect, while its health route answers, may refuse to create one run."""

REFUSALS_OF_ONE = 3
"""Refusals of one run, while other runs are created, after which its message is at fault."""

NO_DEPLOYMENT = Sentence(
    "listener.deployment",
    "there is no deployment {name}, which splits the exports.",
    Actor.OPERATOR,
    "Deploy it (prefect deploy --all, or python -m flows.serve). The messages wait in the queue.",
)


class UnanswerableError(Exception):
    """A message without a usable callback address."""


class NoRunError(Exception):
    """Prefect creates no run for a message, not even a refused one.

    Attributes:
        address: where the failure goes.
        sentence: of the failure.
    """

    def __init__(self, address: ReplyAddress, sentence: str) -> None:
        super().__init__(sentence)
        self.address = address
        self.sentence = sentence


@dataclass
class Waiting:
    """A message without a run.

    Attributes:
        visibility_extended_at: moment of ``time.monotonic()``, as the next.
        refused_since: when Prefect first refused to create its run.
        refusals: how often it has refused.
    """

    delivery: Delivery
    visibility_extended_at: float
    refused_since: float = 0.0
    refusals: int = 0


class Intake:
    """Creates runs of one deployment; decides whether a failed creation is the message's fault."""

    def __init__(self, prefect: SyncPrefectClient, deployment: str, allowed: Allowed) -> None:
        """``deployment``: its flow's name and its own, joined by a slash.

        Raises:
            SetupError: if there is no such deployment.
        """
        self._prefect = prefect
        self._name = deployment
        self._allowed = allowed
        self._created_at = float("-inf")
        self._find_deployment()

    def _find_deployment(self) -> None:
        try:
            found = self._prefect.read_deployment_by_name(self._name)
        except ObjectNotFound:
            raise SetupError(NO_DEPLOYMENT, name=self._name) from None
        self._deployment: UUID = found.id
        self.has_pool = found.work_pool_name is not None

    def create_run(self, waiting: Waiting) -> tuple[ReplyAddress, FlowRun] | None:
        """The run of a message and where its answer goes; None if it has to wait a little.

        A message that is at fault gets a run in the state *Refused*, which the listener answers. It
        has the same idempotency key, so a run whose creation was not confirmed is found instead.

        Raises:
            UnanswerableError: if the message names nobody to answer to.
            NoRunError: if Prefect does not even create the run that shows its fault.
            SetupError: if the deployment is gone.
            Exception: what Prefect answered, if the message is not at fault.
        """
        message = parse_body(waiting.delivery.body)
        address = self._allowed.reply_address(message)
        if address is None:
            raise UnanswerableError(find_wrapping(message) or UNANSWERABLE())
        flaw = find_flaw(message)
        try:
            if flaw:
                run = self._refuse(waiting, address, title(message), str(flaw))
            else:
                # Prefect reads this text and evaluates nothing in it: a message is data, its
                # content is neither the name of a variable nor a template.
                request = {"__prefect_kind": "json", "value": json.dumps(message)}
                run = self._prefect.create_flow_run_from_deployment(
                    self._deployment,
                    parameters={"request": request},
                    name=title(message),
                    tags=["export", download_tag(address)],
                    idempotency_key=waiting.delivery.message_id,
                    job_variables={"env": HEARTBEAT_ENVIRONMENT} if self.has_pool else None,
                )
        except Exception as error:
            if is_deployment_gone(error):
                gone = self._deployment
                self._find_deployment()
                is_new = self._deployment != gone  # created again, under the same name
                if is_new or not self._is_refused_for_good(waiting):
                    return None
            elif not self._is_at_fault(waiting, error):
                raise
            name = f"message {waiting.delivery.message_id}"
            run = self._refuse(waiting, address, name, explain(error))
        self._created_at = time.monotonic()
        return address, run

    def _refuse(self, waiting: Waiting, address: ReplyAddress, name: str, sentence: str) -> FlowRun:
        try:
            return self._prefect.create_flow_run_from_deployment(
                self._deployment,
                parameters={},
                state=Failed(name=decision.REFUSED, message=sentence),
                name=name,
                tags=["export", download_tag(address)],
                idempotency_key=waiting.delivery.message_id,
            )
        except Exception as error:
            if is_denied(error) or is_outage(error) or is_deployment_gone(error):
                raise
            raise NoRunError(address, sentence) from error

    def _is_at_fault(self, waiting: Waiting, error: Exception) -> bool:
        """Whether it is the message's fault that its run was not created.

        It is not during an outage. A server error while Prefect's health route answers is the
        message's fault if Prefect creates other runs meanwhile, or if the error lasts.
        """
        if is_denied(error):
            return False
        if not is_outage(error):
            return True
        if not is_server_error(error):
            return False
        if self._prefect.api_healthcheck() is not None:
            waiting.refusals = 0
            return False
        return self._is_refused_for_good(waiting)

    def _is_refused_for_good(self, waiting: Waiting) -> bool:
        """Count a refusal; whether Prefect creates other runs meanwhile, or it lasts too long."""
        if not waiting.refusals:
            waiting.refused_since = time.monotonic()
        waiting.refusals += 1
        if time.monotonic() - waiting.refused_since > LONGEST_REFUSAL:
            return True
        return waiting.refusals >= REFUSALS_OF_ONE and self._created_at > waiting.refused_since


def is_denied(error: Exception) -> bool:
    """Whether Prefect's API does not accept this process's key."""
    return isinstance(error, HTTPStatusError) and error.response.status_code in (401, 403)


def is_server_error(error: Exception) -> bool:
    return isinstance(error, HTTPStatusError) and error.response.is_server_error


def is_deployment_gone(error: Exception) -> bool:
    if isinstance(error, HTTPStatusError):
        return error.response.status_code == 404
    return isinstance(error, ObjectNotFound)
