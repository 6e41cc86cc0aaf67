"""Creates the run of each trigger message."""

import json
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from httpx import HTTPStatusError
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Failed

from flows.listening import decision
from flows.listening.heartbeats import FREQUENCY
from flows.support.outage import is_outage
from flows.support.run_tags import download_tag
from splitter.aws import Delivery
from splitter.errors import SetupError, explain
from splitter.messages import ReplyAddress, find_flaw, title
from splitter.sentences import Actor, Sentence

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


class NoRunError(Exception):
    """Prefect creates no run for a message, not even a refused one; the text is the failure's."""


@dataclass
class Held:
    """A message that a listener holds.

    Attributes:
        message: its content, from JSON.
        address: where its callback goes.
        visibility_extended_at: moment of ``time.monotonic()``, as the next two.
        refused_since: when Prefect first refused to create its run.
        next_look: when the run is looked at again, unless its state changes.
        refusals: how often Prefect has refused.
        run_id: its run, once that is created.
        state_id: the state in which the run was last looked at.
        waits_for: the logged reason for which the run waits.
    """

    delivery: Delivery
    message: Any
    address: ReplyAddress
    visibility_extended_at: float
    refused_since: float = 0.0
    next_look: float = 0.0
    refusals: int = 0
    run_id: UUID | None = None
    state_id: UUID | None = None
    waits_for: str = ""


class Intake:
    """Creates runs of one deployment; decides whether a failed creation is the message's fault."""

    def __init__(self, prefect: SyncPrefectClient, deployment: str) -> None:
        """``deployment``: its flow's name and its own, joined by a slash.

        Raises:
            SetupError: if there is no such deployment.
        """
        self._prefect = prefect
        self._name = deployment
        self._created_at = float("-inf")
        self._find_deployment()

    def _find_deployment(self) -> None:
        try:
            found = self._prefect.read_deployment_by_name(self._name)
        except ObjectNotFound:
            raise SetupError(NO_DEPLOYMENT, name=self._name) from None
        self._deployment: UUID = found.id
        self.has_pool = found.work_pool_name is not None

    def create_run(self, held: Held) -> FlowRun | None:
        """The run of a message; None if it has to wait a little.

        A message that is at fault gets a run in the state *Refused*, which the listener answers. It
        has the same idempotency key, so a run whose creation was not confirmed is found instead.

        Raises:
            NoRunError: if Prefect does not even create the run that shows its fault.
            SetupError: if the deployment is gone.
            Exception: what Prefect answered, if the message is not at fault.
        """
        name = title(held.message)
        flaw = find_flaw(held.message)
        try:
            if flaw:
                run = self._refuse(held, name, str(flaw))
            else:
                # Prefect reads this text and evaluates nothing in it: a message is data, its
                # content is neither the name of a variable nor a template.
                environment = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(FREQUENCY)}
                request = {"__prefect_kind": "json", "value": json.dumps(held.message)}
                run = self._create(
                    held,
                    name,
                    parameters={"request": request},
                    job_variables={"env": environment} if self.has_pool else None,
                )
        except Exception as error:
            if is_deployment_gone(error):
                gone = self._deployment
                self._find_deployment()
                is_new = self._deployment != gone  # created again, under the same name
                if is_new or not self._is_refused_for_good(held):
                    return None
            elif not self._is_at_fault(held, error):
                raise
            run = self._refuse(held, f"message {held.delivery.message_id}", explain(error))
        self._created_at = time.monotonic()
        return run

    def _refuse(self, held: Held, name: str, sentence: str) -> FlowRun:
        refused: State[Any] = Failed(name=decision.REFUSED, message=sentence)
        try:
            return self._create(held, name, parameters={}, state=refused)
        except Exception as error:
            if is_denied(error) or is_outage(error) or is_deployment_gone(error):
                raise
            raise NoRunError(sentence) from error

    def _create(self, held: Held, name: str, **values: Any) -> FlowRun:
        return self._prefect.create_flow_run_from_deployment(
            self._deployment,
            name=name,
            tags=["export", download_tag(held.address)],
            idempotency_key=held.delivery.message_id,
            **values,
        )

    def _is_at_fault(self, held: Held, error: Exception) -> bool:
        """Whether it is the message's fault that its run was not created.

        It is not during an outage. A server error while Prefect's health route answers is the
        message's fault if Prefect creates other runs meanwhile, or if the error lasts.
        """
        if not is_outage(error):
            return not is_denied(error)
        if not (isinstance(error, HTTPStatusError) and error.response.is_server_error):
            return False
        if self._prefect.api_healthcheck() is not None:
            held.refusals = 0
            return False
        return self._is_refused_for_good(held)

    def _is_refused_for_good(self, held: Held) -> bool:
        """Count a refusal; whether Prefect creates other runs meanwhile, or it lasts too long."""
        if not held.refusals:
            held.refused_since = time.monotonic()
        held.refusals += 1
        if time.monotonic() - held.refused_since > LONGEST_REFUSAL:
            return True
        return held.refusals >= REFUSALS_OF_ONE and self._created_at > held.refused_since


def is_denied(error: Exception) -> bool:
    """Whether Prefect's API does not accept this process's key."""
    return isinstance(error, HTTPStatusError) and error.response.status_code in (401, 403)


def is_deployment_gone(error: Exception) -> bool:
    if isinstance(error, HTTPStatusError):
        return error.response.status_code == 404
    return isinstance(error, ObjectNotFound)
