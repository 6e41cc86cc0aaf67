"""The listener, against SQS over HTTP and a real Prefect server."""

import json
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from botocore.exceptions import EndpointConnectionError
from httpx import ConnectError, HTTPStatusError, Request, Response
from moto.server import ThreadedMotoServer
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import (
    Cancelled,
    Completed,
    Crashed,
    Failed,
    Paused,
    Pending,
    Running,
    Scheduled,
)

from devtools.services import child, free_port
from flows.create_batches import create_batches
from flows.listen import listen
from flows.listening.clock import ServerClock
from flows.listening.heartbeats import Heartbeats
from flows.listening.intake import Held, Intake, NoRunError
from flows.listening.listener import Listener
from flows.listening.recovery import callback_of, observe
from splitter.aws.sqs import CallbackQueue, TriggerQueue
from splitter.settings import Allowed, Settings
from tests.conftest import BOTH_DATABASES, EXPORTS
from tests.helpers.biospex import Biospex
from tests.helpers.broken_prefect import broken_prefect, creations
from tests.helpers.processes import eventually

pytestmark = [pytest.mark.usefixtures("prefect_api", "aws", "workspace"), BOTH_DATABASES]


JUNK = ["not JSON", "[]", '{"downloadId": 1}', '{"downloadId": NaN, "updatesQueueUrl": "x"}']


class Silence:
    """Heartbeats of runs that are all dead."""

    def have_stopped(self, run: FlowRun) -> bool:
        return bool(run.state and run.state.is_running())


@dataclass(frozen=True)
class Deployment:
    """The flow deployed, but served by nobody, so that its runs stay Scheduled."""

    prefect: SyncPrefectClient
    biospex: Biospex
    id: UUID
    name: str

    def listener(self, max_in_flight: int = 4) -> Listener:
        queue = TriggerQueue(
            self.biospex.sqs, self.biospex.trigger_queue_url, visibility_timeout=30
        )
        queue.has_redrive_policy()
        settings = Settings(max_in_flight=max_in_flight)
        intake = Intake(self.prefect, self.name)
        silence = cast(Heartbeats, Silence())
        return Listener(queue, self.prefect, intake, settings, Allowed(), silence, ServerClock())

    def with_in_flight(self, *requests: dict[str, Any]) -> Listener:
        """A listener to which these requests have become runs."""
        self.biospex.send(*requests)
        listener = self.listener()
        while sum(bool(held.run_id) for held in listener.held.values()) < len(requests):
            receive(listener)
        return listener

    def runs(self) -> list[FlowRun]:
        here = DeploymentFilter(id=DeploymentFilterId(any_=[self.id]))
        return self.prefect.read_flow_runs(deployment_filter=here)

    def run(self) -> FlowRun:
        [run] = self.runs()
        return run

    def set(self, *states: State[Any]) -> None:
        """Put every run into these states, one after the other."""
        for run in self.runs():
            for state in states:
                self.prefect.set_flow_run_state(run.id, state, force=True)


@pytest.fixture
def deployment(biospex: Biospex, prefect: SyncPrefectClient) -> Iterator[Deployment]:
    name = f"unserved-{uuid4()}"
    made = cast(
        RunnerDeployment, create_batches.to_deployment(name, enforce_parameter_schema=False)
    )
    with disable_run_logger():
        yield Deployment(prefect, biospex, cast(UUID, made.apply()), f"create-batches/{name}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time between two looks."""
    monkeypatch.setattr("flows.listening.listener.SECONDS_BETWEEN_LOOKS", 0)


@pytest.fixture
def listener(deployment: Deployment, biospex: Biospex, impatient: None) -> Listener:
    """A listener with one message in flight, whose run is ``deployment.run()``."""
    return deployment.with_in_flight(biospex.request(EXPORTS[0]))


def receive(listener: Listener) -> None:
    listener.receive(threading.Event())


def test_a_message_becomes_one_run_named_after_its_export(
    deployment: Deployment, biospex: Biospex
) -> None:
    request = biospex.request(EXPORTS[0], addedLater=[1])
    biospex.send(request)
    receive(deployment.listener())
    run = deployment.run()
    assert run.name == f"download 512: {EXPORTS[0].name}"
    assert run.parameters == {"request": request}
    assert "download-512" in run.tags
    assert biospex.triggers() == (0, 1)


def test_a_second_delivery_is_the_same_run(deployment: Deployment, biospex: Biospex) -> None:
    biospex.send(biospex.request(EXPORTS[0]))
    first, second = deployment.listener(), deployment.listener()
    receive(first)
    first.release()
    assert biospex.triggers() == (1, 0)
    receive(second)
    assert biospex.triggers() == (0, 1)
    assert len(deployment.runs()) == 1


def test_restarts_of_the_listener_lead_to_no_dead_letter(
    deployment: Deployment, biospex: Biospex
) -> None:
    biospex.send(biospex.request(EXPORTS[0]))
    for _ in range(12):
        listener = deployment.listener()
        receive(listener)
        assert biospex.triggers() == (0, 1)
        listener.release()
    assert biospex.triggers() == (1, 0)
    assert len(deployment.runs()) == 1


def refusing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let Prefect's client raise this whenever a run is to be made."""

    def refuse(*_: Any, **__: Any) -> FlowRun:
        raise error

    monkeypatch.setattr(SyncPrefectClient, "create_flow_run_from_deployment", refuse)


def server_error(status: int) -> HTTPStatusError:
    request = Request("POST", "http://prefect.invalid/api")
    return HTTPStatusError("refused", request=request, response=Response(status, request=request))


def test_a_message_waits_for_prefect_and_costs_no_receive_meanwhile(
    deployment: Deployment, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    biospex.send(biospex.request(EXPORTS[0]))
    listener = deployment.listener()
    with monkeypatch.context() as patch:
        refusing(patch, server_error(500))
        for _ in range(3):
            with pytest.raises(HTTPStatusError):
                receive(listener)
    receive(listener)
    assert len(deployment.runs()) == 1
    assert biospex.triggers() == (0, 1)
    assert biospex.callbacks() == []


def test_a_message_whose_run_cannot_be_created_is_answered(
    deployment: Deployment, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    biospex.send(biospex.request(EXPORTS[0]))
    refusing(monkeypatch, ValueError("nobody thought of it"))
    receive(deployment.listener())
    assert biospex.statuses() == ["failed"]
    assert biospex.triggers() == (0, 0)


def refusing_one(monkeypatch: pytest.MonkeyPatch, download: str) -> None:
    """Let Prefect's client raise a server error whenever a run of one download is to be created."""
    create = SyncPrefectClient.create_flow_run_from_deployment

    def create_or_refuse(client: Any, deployment: UUID, **values: Any) -> FlowRun:
        if download in json.dumps(values.get("parameters")):
            raise server_error(500)
        return create(client, deployment, **values)

    monkeypatch.setattr(SyncPrefectClient, "create_flow_run_from_deployment", create_or_refuse)


def test_a_message_that_prefect_refuses_delays_no_other_and_is_answered(
    deployment: Deployment, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing_one(monkeypatch, "poison")
    listener = deployment.listener(max_in_flight=9)
    biospex.send(biospex.request(EXPORTS[0], downloadId="poison"))
    for number in range(4):
        biospex.send(biospex.request(EXPORTS[0], downloadId=number))
        with suppress(HTTPStatusError):
            receive(listener)
    while len(deployment.runs()) < 5:
        with suppress(HTTPStatusError):
            receive(listener)
    listener.poll()
    [callback] = biospex.callbacks()
    assert (callback["downloadId"], callback["status"]) == ("poison", "failed")
    states = Counter(str(run.state_name) for run in deployment.runs())
    assert states["Refused"] == 1
    assert states["Scheduled"] + states["Late"] == 4  # nobody serves them


def test_a_recreated_deployment_is_found_by_its_name(
    deployment: Deployment, biospex: Biospex
) -> None:
    listener = deployment.listener()
    deployment.prefect.delete_deployment(deployment.id)
    name = deployment.name.partition("/")[2]
    create_batches.to_deployment(name, enforce_parameter_schema=False).apply()  # type: ignore[union-attr]
    biospex.send(biospex.request(EXPORTS[0]))
    receive(listener)
    receive(listener)
    [held] = listener.held.values()
    assert held.run_id


def test_no_more_messages_are_taken_than_allowed(deployment: Deployment, biospex: Biospex) -> None:
    biospex.send(*(biospex.request(EXPORTS[0], downloadId=number) for number in range(5)))
    listener = deployment.listener(max_in_flight=2)
    for _ in range(3):
        receive(listener)
    assert biospex.triggers() == (3, 2)


def test_a_message_that_cannot_be_answered_is_left_for_the_redrive_policy(
    deployment: Deployment, biospex: Biospex
) -> None:
    biospex.send(*JUNK)
    listener = deployment.listener()
    receive(listener)
    listener.poll()
    assert deployment.runs() == []
    assert sum(biospex.triggers()) == len(JUNK)


TEMPLATE = {"__prefect_kind": "jinja", "template": "{{ 'a' * 50_000_000 }}"}


def test_a_message_reaches_its_run_unchanged(deployment: Deployment, biospex: Biospex) -> None:
    more = {"$ref": {"block_document_id": str(uuid4())}, "text": "{{ prefect.variables.secret }}"}
    message = {**biospex.request(EXPORTS[0]), "more": [more]}
    biospex.send(message)
    receive(deployment.listener())
    assert deployment.run().parameters == {"request": message}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"downloadId": "5\x0012"}, "'downloadId' must not contain control or direction"),
        ({"more": {"deep": [{"x": TEMPLATE}]}}, "begins with '__'"),
        ({"downloadId": 10**30}, "'downloadId' is too large a number"),
    ],
    ids=["character", "template", "number"],
)
def test_a_harmful_message_reaches_no_service_and_is_answered_once(
    changes: dict[str, Any],
    sentence: str,
    deployment: Deployment,
    biospex: Biospex,
) -> None:
    request = {**biospex.request(EXPORTS[0]), **changes}
    biospex.send(request)
    listener = deployment.listener()
    receive(listener)
    listener.poll()
    [callback] = biospex.callbacks()
    assert sentence in callback["error"]
    assert callback["downloadId"] == request["downloadId"]
    run = deployment.run()
    assert (run.state_name, run.parameters) == ("Refused", {})
    assert biospex.triggers() == (0, 0)


def test_a_callback_that_cannot_be_sent_leaves_only_its_message_to_redrive(
    deployment: Deployment, biospex: Biospex
) -> None:
    dead_end = biospex.request(EXPORTS[0], updatesQueueUrl=f"{biospex.queue_url}-deleted")
    innocent = biospex.request(EXPORTS[0], downloadId="innocent")
    listener = deployment.with_in_flight(dead_end, innocent)
    deployment.set(Cancelled())
    listener.poll()
    assert listener.held == {}
    assert [callback["downloadId"] for callback in biospex.callbacks()] == ["innocent"]
    assert sum(biospex.triggers()) == 1


def test_a_callback_queue_that_is_away_delays_no_other_message_of_those_without_a_run(
    deployment: Deployment, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    biospex.send(biospex.request(EXPORTS[0], downloadId="bad"), biospex.request(EXPORTS[0]))
    create_run = Intake.create_run

    def create(intake: Intake, held: Held) -> FlowRun | None:
        if held.address.download_id == "bad":
            raise NoRunError("Prefect refuses it")
        return create_run(intake, held)

    def send(*_: object) -> None:
        raise EndpointConnectionError(endpoint_url="https://sqs.nowhere-1.amazonaws.com")

    monkeypatch.setattr(Intake, "create_run", create)
    monkeypatch.setattr(CallbackQueue, "send", send)
    listener = deployment.listener()
    for _ in range(5):
        with suppress(EndpointConnectionError):
            receive(listener)
    assert [held.run_id for held in listener.held.values()] == [deployment.run().id]
    assert biospex.triggers() == (0, 2)  # the other one comes again


@pytest.mark.parametrize("error", [ValueError("nobody thought of it"), KeyError("x")], ids=repr)
def test_an_unexpected_error_is_answered_and_affects_no_other_export(
    error: Exception,
    deployment: Deployment,
    biospex: Biospex,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = [biospex.request(EXPORTS[0], downloadId=number) for number in range(2)]
    listener = deployment.with_in_flight(*requests)
    deployment.set(Cancelled())
    odd = next(iter(listener.held.values())).run_id

    def observe_or_not(client: Any, run: FlowRun, *arguments: Any) -> Any:
        if run.id == odd:
            raise error
        return observe(client, run, *arguments)

    monkeypatch.setattr("flows.listening.listener.observe", observe_or_not)
    listener.poll()
    assert sorted(callback["downloadId"] for callback in biospex.callbacks()) == [0, 1]
    assert listener.held == {}


def test_an_outage_while_an_unexpected_error_is_answered_costs_no_message(
    listener: Listener, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> Callable[..., Any]:
        def failing(*_: Any) -> Any:
            raise error

        return failing

    monkeypatch.setattr("flows.listening.listener.observe", fail(ValueError("odd")))
    with monkeypatch.context() as during:
        during.setattr("flows.listening.listener.force_cancelled", fail(ConnectError("away")))
        for _ in range(7):  # more than a message is rejected
            listener.poll()
    assert len(listener.held) == 1
    listener.poll()
    assert biospex.statuses() == ["failed"]
    assert biospex.triggers() == (0, 0)


def test_a_failed_start_is_no_attempt(
    listener: Listener, deployment: Deployment, biospex: Biospex
) -> None:
    refusal = "RunTask: Capacity is unavailable at this time"
    for _ in range(5):  # more than MAX_ATTEMPTS
        deployment.set(Pending(), Crashed(message=refusal))
        listener.poll()
        waiting = deployment.run().state
        assert waiting is not None
        assert waiting.name == "AwaitingRetry"
        assert waiting.message is not None  # the operator sees why it waits
        assert refusal in waiting.message
    assert biospex.callbacks() == []
    listener.settings.start_timeout = -1
    listener.poll()
    [callback] = biospex.callbacks()
    assert "it stayed AwaitingRetry" in callback["error"]


def test_nothing_is_sent_to_a_queue_that_is_not_allowed(
    deployment: Deployment,
    biospex: Biospex,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALLOWED_QUEUES", "https://sqs.us-east-2.amazonaws.com/*")
    biospex.send(biospex.request(EXPORTS[0]))
    listener = deployment.listener()
    receive(listener)
    listener.poll()
    assert deployment.runs() == []
    assert biospex.callbacks() == []
    assert biospex.triggers() == (0, 1)  # as any other that cannot be answered


def test_a_run_longer_than_a_receipt_handle_is_settled_by_a_redelivery(
    listener: Listener, deployment: Deployment, biospex: Biospex
) -> None:
    [export] = listener.held.values()
    current = export.delivery.receipt_handle
    export.delivery.receipt_handle = "expired after twelve hours"
    export.visibility_extended_at = 0.0  # long ago: time to extend it, which fails
    listener.poll()
    deployment.set(Cancelled())
    listener.poll()
    assert len(biospex.callbacks()) == 1
    assert biospex.triggers() == (0, 1)
    biospex.sqs.change_message_visibility(
        QueueUrl=biospex.trigger_queue_url, ReceiptHandle=current, VisibilityTimeout=0
    )
    receive(listener)
    listener.poll()
    assert biospex.callbacks() == []
    assert biospex.triggers() == (0, 0)
    assert len(deployment.runs()) == 1


def test_a_cancelled_run_is_answered_with_a_failure(
    listener: Listener, deployment: Deployment, biospex: Biospex
) -> None:
    deployment.set(Cancelled())
    listener.poll()
    [callback] = biospex.callbacks()
    assert callback["status"] == "failed"
    assert callback["downloadId"] == 512
    assert "the run that makes them was cancelled" in callback["error"]
    assert biospex.triggers() == (0, 0)


@pytest.mark.parametrize("end", [Crashed(), Failed()], ids=lambda state: state.name)
def test_a_run_that_ended_without_a_callback_is_tried_again(
    end: State[Any],
    listener: Listener,
    deployment: Deployment,
    biospex: Biospex,
) -> None:
    deployment.set(Running(), end)
    listener.poll()
    waiting = deployment.run()
    assert waiting.state and waiting.next_scheduled_start_time
    assert waiting.state_name == "AwaitingRetry"
    assert str(end.name) in str(waiting.state.message)
    assert waiting.next_scheduled_start_time > waiting.state.timestamp + timedelta(seconds=10)
    assert biospex.callbacks() == []
    assert biospex.triggers() == (0, 1)


def test_the_last_attempt_is_followed_by_one_failure(
    listener: Listener,
    deployment: Deployment,
    prefect: SyncPrefectClient,
    biospex: Biospex,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TriggerQueue, "acknowledge", lambda *_: None)  # as if it died just before
    [export] = listener.held.values()
    listener.settings.max_attempts = 1
    deployment.set(Running(), Failed(message="The sentence of the run."))
    listener.poll()
    monkeypatch.undo()
    [callback] = biospex.callbacks()
    assert callback["error"] == "The sentence of the run."
    assert callback_of(prefect, deployment.run())
    listener.queue.release(export.delivery)
    receive(listener)
    listener.poll()
    assert biospex.callbacks() == []
    assert biospex.triggers() == (0, 0)


def test_a_run_without_heartbeats_is_marked_crashed_and_tried_again(
    listener: Listener, deployment: Deployment, biospex: Biospex
) -> None:
    deployment.set(Running())
    listener.poll()
    assert deployment.run().state_name == "Crashed"
    listener.poll()
    assert deployment.run().state_name == "AwaitingRetry"
    assert biospex.callbacks() == []


def test_a_run_that_was_taken_but_never_started_is_tried_again(
    listener: Listener,
    deployment: Deployment,
    biospex: Biospex,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flows.listening.decision.TIME_TO_START_HERE", timedelta(seconds=-1))
    deployment.set(Pending(name="Submitting"))
    for _ in range(2):
        listener.poll()
    assert deployment.run().state_name == "AwaitingRetry"
    assert biospex.callbacks() == []


def test_a_lasting_404_about_an_existing_deployment_fails_the_listener(
    prefect_api: dict[str, str],
    deployment: Deployment,
    biospex: Biospex,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        broken_prefect(prefect_api["PREFECT_API_URL"]) as broken,
        temporary_settings({PREFECT_API_URL: broken.url}),
        get_client(sync_client=True) as client,
    ):
        listener = replace(deployment, prefect=client).listener(max_in_flight=1)
        broken.fault = creations(404)
        biospex.send(biospex.request(EXPORTS[0]))
        while not listener.held:
            receive(listener)
        receive(listener)
        monkeypatch.setattr("flows.listening.intake.LONGEST_REFUSAL", 0)
        with pytest.raises((ObjectNotFound, HTTPStatusError)):
            receive(listener)
        broken.fault = lambda method, path: None
        receive(listener)
    assert len(deployment.runs()) == 1


@pytest.mark.parametrize("state", [Scheduled(), Paused()], ids=lambda state: state.name)
def test_a_run_that_does_not_start_is_ended_and_answered(
    state: State[Any],
    listener: Listener,
    deployment: Deployment,
    biospex: Biospex,
) -> None:
    listener.settings.start_timeout = -1
    deployment.set(state)
    listener.poll()
    assert deployment.run().state_name == "Cancelled"
    [callback] = biospex.callbacks()
    assert f"it stayed {state.name}" in callback["error"]


def test_a_run_that_does_not_end_is_cancelled(
    listener: Listener,
    deployment: Deployment,
) -> None:
    listener.settings.run_timeout = -1
    deployment.set(Running())
    listener.poll()
    assert deployment.run().state_name == "Cancelling"


def test_a_failure_that_cannot_be_noted_is_still_sent_only_once(
    listener: Listener,
    deployment: Deployment,
    biospex: Biospex,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("Prefect's API is away for a moment")

    monkeypatch.setattr("flows.listening.listener.note_callback", refuse)
    deployment.set(Cancelled())
    for _ in range(2):
        listener.poll()
    assert biospex.statuses() == ["failed"]
    assert biospex.triggers() == (0, 0)


def test_a_run_deleted_in_the_ui_is_answered(
    listener: Listener, deployment: Deployment, prefect: SyncPrefectClient, biospex: Biospex
) -> None:
    prefect.delete_flow_run(deployment.run().id)
    listener.poll()
    [callback] = biospex.callbacks()
    assert "the run that makes them was deleted" in callback["error"]


@pytest.mark.parametrize("error", [ConnectError("away"), ValueError("odd")], ids=repr)
@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_message_that_could_not_be_deleted_is_answered_once(
    is_deleted: bool,
    error: Exception,
    listener: Listener,
    deployment: Deployment,
    prefect: SyncPrefectClient,
    biospex: Biospex,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise error

    if is_deleted:
        prefect.delete_flow_run(deployment.run().id)
    else:
        deployment.set(Completed())
    [export] = listener.held.values()
    with monkeypatch.context() as during:
        during.setattr(listener.queue, "acknowledge", refuse)
        listener.poll()
    listener.queue.release(export.delivery)
    receive(listener)
    assert biospex.statuses() == ["failed"] * is_deleted
    assert biospex.triggers() == (0, 0)
    assert len(deployment.runs()) == (not is_deleted)


def test_a_run_that_completed_gets_no_second_callback(
    deployment: Deployment, biospex: Biospex
) -> None:
    listener = deployment.with_in_flight(biospex.request(EXPORTS[0]))
    deployment.set(Completed())
    listener.poll()
    assert biospex.callbacks() == []
    assert biospex.triggers() == (0, 0)


def test_a_listener_waits_for_aws_and_hands_its_messages_back_at_sigterm(
    deployment: Deployment, biospex: Biospex, tmp_path: Path
) -> None:
    biospex.send(biospex.request(EXPORTS[0]))
    port, log = free_port(), tmp_path / "log"
    arguments = f"{biospex.trigger_queue_url!r}, {deployment.name!r}"
    command = [sys.executable, "-c", f"from flows.listen import listen; listen({arguments})"]
    environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    with log.open("wb") as output, child(command, environment, output) as process:
        eventually(lambda: "Waiting for a service" in log.read_text())
        late = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        late.start()  # with the queues of the other one, being in the same process
        try:
            eventually(lambda: biospex.triggers() == (0, 1))
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            late.stop()
    assert biospex.triggers() == (1, 0)
    assert log.read_text().count("Waiting for a service") == 1


@contextmanager
def refusing_aws(code: str) -> Iterator[str]:
    """AWS that refuses every request with an error code; yields its URL."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = json.dumps({"__type": f"com.amazon.coral.service#{code}"}).encode()
            self.send_response(403)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as aws:
        threading.Thread(target=aws.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{aws.server_port}"
        aws.shutdown()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [("ExpiredToken", "ExpiredToken"), ("AccessDenied", "let the listener's role use")],
)
def test_a_listener_that_aws_refuses_fails_with_a_sentence(
    code: str, sentence: str, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing_aws(code) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        state: State[Any] = listen(f"{url}/1/triggers", deployment.name, return_state=True)
    assert state.is_failed()
    assert sentence in str(state.message)
