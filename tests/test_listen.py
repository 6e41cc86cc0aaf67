"""The listener, against SQS over HTTP and a real Prefect server."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from moto.server import ThreadedMotoServer
from prefect import flow, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments.runner import RunnerDeployment
from prefect.flow_engine import run_flow
from prefect.logging import disable_run_logger
from prefect.settings import get_current_settings
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Paused,
    Pending,
    Running,
)

from cli.services import free_port
from flows.create_batches import create_batches
from flows.listen import Listener
from flows.support.outage import Outage
from flows.support.recovery import callback_of, missed_heartbeats, observe
from flows.support.takeover import Standing, Takeover
from splitter.queues import TriggerQueue
from splitter.settings import Allowed, Settings
from tests.conftest import BOTH_DATABASES, EXPORTS
from tests.processes import eventually, messages

pytestmark = [pytest.mark.usefixtures("prefect_api", "aws", "workspace"), BOTH_DATABASES]

MakeRequest = Callable[..., Any]
Received = Callable[[], list[Any]]

JUNK = ["not JSON", "[]", '{"downloadId": 1}', '{"downloadId": NaN, "updatesQueueUrl": "x"}']


@pytest.fixture
def listener_of(
    sqs: Any, triggers: str, prefect: SyncPrefectClient
) -> Iterator[Callable[..., Listener]]:
    """Makes listeners for a deployment that nothing serves, so that its runs stay Scheduled."""
    name = f"unserved-{uuid4()}"
    cast(
        RunnerDeployment, create_batches.to_deployment(name, enforce_parameter_schema=False)
    ).apply()

    def make(max_in_flight: int = 4) -> Listener:
        queue = TriggerQueue(sqs, triggers, visibility_timeout=30)
        queue.has_redrive_policy()
        settings = Settings(max_in_flight=max_in_flight)
        deployment = f"create-batches/{name}"
        return Listener(queue, prefect, deployment, settings, Allowed(), Outage())

    make.deployment = prefect.read_deployment_by_name(f"create-batches/{name}").id  # type: ignore[attr-defined]
    with disable_run_logger():
        yield make


def receive(listener: Listener) -> None:
    listener.receive(threading.Event())


def runs(prefect: SyncPrefectClient, listener_of: Any) -> list[FlowRun]:
    return prefect.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[listener_of.deployment]))
    )


def test_a_message_becomes_one_run_that_says_what_it_is_about(
    listener_of: Any,
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    request_for: MakeRequest,
) -> None:
    request = request_for(EXPORTS[0], addedLater=[1])
    sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(request))
    receive(listener_of())
    [run] = runs(prefect, listener_of)
    assert run.name == f"{EXPORTS[0].name} for download 512"
    assert run.parameters == {"request": request}
    assert "download-512" in run.tags
    assert messages(sqs, triggers) == (0, 1)


def test_a_second_delivery_is_the_same_run(
    listener_of: Any,
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    request_for: MakeRequest,
) -> None:
    sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(request_for(EXPORTS[0])))
    first, second = listener_of(), listener_of()
    receive(first)
    first.stop()
    assert messages(sqs, triggers) == (1, 0)
    receive(second)
    assert messages(sqs, triggers) == (0, 1)
    assert len(runs(prefect, listener_of)) == 1


def test_no_more_messages_are_taken_than_allowed(
    listener_of: Any, sqs: Any, triggers: str, request_for: MakeRequest
) -> None:
    for number in range(5):
        request = request_for(EXPORTS[0], downloadId=number)
        sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(request))
    listener = listener_of(max_in_flight=2)
    for _ in range(3):
        receive(listener)
    assert messages(sqs, triggers) == (3, 2)


def test_a_message_that_cannot_be_answered_is_left_for_the_redrive_policy(
    listener_of: Any, prefect: SyncPrefectClient, sqs: Any, triggers: str
) -> None:
    for body in JUNK:
        sqs.send_message(QueueUrl=triggers, MessageBody=body)
    listener = listener_of()
    receive(listener)
    listener.poll()
    assert runs(prefect, listener_of) == []
    assert sum(messages(sqs, triggers)) == len(JUNK)


VARIABLE = {"__prefect_kind": "workspace_variable", "variable_name": "secret"}
TEMPLATE = {"__prefect_kind": "jinja", "template": "{{ 'a' * 50_000_000 }}"}


def test_a_message_is_data_as_it_came(
    listener_of: Any,
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    request_for: MakeRequest,
) -> None:
    more = {"$ref": {"block_document_id": str(uuid4())}, "text": "{{ prefect.variables.secret }}"}
    message = {**request_for(EXPORTS[0]), "more": [more]}
    sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(message))
    receive(listener_of())
    [run] = runs(prefect, listener_of)
    assert run.parameters == {"request": message}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"file": "a\0.zip"}, "'file' must not contain control characters"),
        ({"downloadId": "5\x0012"}, "'downloadId' must not contain control characters"),
        ({"note": {"deep": ["\x01"]}}, "'note' must not contain control characters"),
        ({"note": "a" * 100_000}, "longer than 16,384 bytes"),
        ({"note": [[[[[[[[[[]]]]]]]]]]}, "nested too deeply"),
        *(({field: VARIABLE}, "begins with '__'") for field in ("file", "s3Bucket", "unknown")),
        ({"more": {"deep": [{"x": TEMPLATE}]}}, "begins with '__'"),
        ({**TEMPLATE}, "begins with '__'"),
        ({"note": 10**30}, "too large a number"),
        ({"downloadId": 10**30}, "'downloadId' is too large a number"),
    ],
    ids=[
        *("in a field", "in the id", "deep", "long", "nested"),
        *("variable as file", "variable as bucket", "variable elsewhere", "deep template"),
        *("template itself", "large number", "large id"),
    ],
)
def test_a_message_that_no_service_should_be_given_is_answered_once(
    changes: dict[str, Any],
    sentence: str,
    listener_of: Any,
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    request_for: MakeRequest,
    received: Received,
) -> None:
    request = {**request_for(EXPORTS[0]), **changes}
    sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(request))
    listener = listener_of()
    receive(listener)
    listener.poll()
    [callback] = received()
    assert sentence in callback["error"]
    assert callback["downloadId"] == request["downloadId"]
    [run] = runs(prefect, listener_of)
    assert (run.state_name, run.parameters) == ("Refused", {})
    assert messages(sqs, triggers) == (0, 0)


def test_a_callback_that_cannot_be_sent_leaves_its_message_to_redrive_and_no_other(
    listener_of: Any,
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    queue_url: str,
    request_for: MakeRequest,
    received: Received,
) -> None:
    dead_end = request_for(EXPORTS[0], updatesQueueUrl=f"{queue_url}-deleted")
    for request in (dead_end, request_for(EXPORTS[0], downloadId="innocent")):
        sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(request))
    listener = listener_of()
    while len(listener._in_flight) < 2:
        receive(listener)
    for run in runs(prefect, listener_of):
        prefect.set_flow_run_state(run.id, Cancelled(), force=True)
    listener.poll()
    assert listener._in_flight == {}
    assert [callback["downloadId"] for callback in received()] == ["innocent"]
    assert sum(messages(sqs, triggers)) == 1


@pytest.mark.parametrize("error", [ValueError("nobody thought of it"), KeyError("x")], ids=repr)
def test_whatever_goes_wrong_with_one_export_stays_with_it(
    error: Exception,
    listener_of: Any,
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    request_for: MakeRequest,
    received: Received,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(2):
        request = request_for(EXPORTS[0], downloadId=number)
        sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(request))
    listener = listener_of()
    while len(listener._in_flight) < 2:
        receive(listener)
    for run in runs(prefect, listener_of):
        prefect.set_flow_run_state(run.id, Cancelled(), force=True)
    odd = next(iter(listener._in_flight.values())).flow_run_id

    def observe_or_not(client: Any, run: FlowRun, reachable_since: float) -> Any:
        if run.id == odd:
            raise error
        return observe(client, run, reachable_since)

    monkeypatch.setattr("flows.listen.observe", observe_or_not)
    listener.poll()
    assert len(received()) == 1
    assert listener._in_flight == {}


def test_what_fails_before_the_flows_code_has_begun_is_no_attempt(
    in_flight: tuple[Listener, UUID], prefect: SyncPrefectClient, received: Received
) -> None:
    listener, run_id = in_flight
    refusal = "RunTask: Capacity is unavailable at this time"
    for _ in range(5):  # more than MAX_ATTEMPTS
        ends: list[State[Any]] = [Pending(), Crashed(message=refusal)]
        for state in ends:
            prefect.set_flow_run_state(run_id, state, force=True)
        listener.poll()
        waiting = prefect.read_flow_run(run_id).state
        assert waiting is not None
        assert waiting.name == "AwaitingRetry"
        assert waiting.message is not None  # the operator sees why it waits
        assert refusal in waiting.message
    assert received() == []
    listener._settings.start_timeout = -1
    listener.poll()
    [callback] = received()
    assert "stayed AwaitingRetry for too long" in callback["error"]


def test_an_attempt_that_began_counts_however_its_successors_fail_to_start(
    in_flight: tuple[Listener, UUID], prefect: SyncPrefectClient
) -> None:
    _, run_id = in_flight
    history: list[State[Any]] = [Running(), Crashed(), AwaitingRetry(), Pending(), Crashed()]
    for state in history:
        prefect.set_flow_run_state(run_id, state, force=True)
    seen = observe(prefect, prefect.read_flow_run(run_id), 0.0)
    assert seen is not None
    assert (seen.attempts, seen.failed_starts) == (1, 1)


def test_after_an_outage_nobody_is_judged_before_three_heartbeats_time(
    listener_of: Any, prefect: SyncPrefectClient
) -> None:
    run = prefect.create_flow_run_from_deployment(listener_of.deployment)
    run.state = Running(timestamp=datetime.now(UTC) - timedelta(hours=1))
    frequency = get_current_settings().flows.heartbeat_frequency
    assert frequency is not None
    now = time.monotonic()
    assert missed_heartbeats(prefect, run, reachable_since=now - 2.9 * frequency) == 0
    assert missed_heartbeats(prefect, run, reachable_since=now - 3 * frequency) >= 3


def test_the_loop_knows_since_when_all_services_answer() -> None:
    with disable_run_logger():
        outage = Outage()
    stopping = threading.Event()
    stopping.set()  # so that nothing waits
    before = outage.reachable_since
    with outage.wait_out_outage(stopping):
        raise ConnectionError("Prefect is away")
    with outage.wait_out_outage(stopping):
        assert outage.reachable_since > before  # runs are judged in the first loop after it


def test_nothing_is_sent_to_a_queue_that_is_not_allowed(
    listener_of: Any,
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    request_for: MakeRequest,
    received: Received,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALLOWED_QUEUES", "https://sqs.us-east-2.amazonaws.com/*")
    sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(request_for(EXPORTS[0])))
    listener = listener_of()
    receive(listener)
    listener.poll()
    assert runs(prefect, listener_of) == []
    assert received() == []
    assert messages(sqs, triggers) == (0, 1)  # as any other that cannot be answered


def test_a_run_that_outlasts_the_receipt_handle_is_settled_by_the_next_delivery(
    in_flight: tuple[Listener, UUID],
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    received: Received,
    listener_of: Any,
) -> None:
    listener, run_id = in_flight
    [export] = listener._in_flight.values()
    current = export.delivery.receipt_handle
    export.delivery.receipt_handle = "expired after twelve hours"
    export.visibility_extended_at = 0.0  # long ago: time to extend it, which fails
    listener.poll()
    prefect.set_flow_run_state(run_id, Cancelled(), force=True)
    listener.poll()
    assert len(received()) == 1
    assert messages(sqs, triggers) == (0, 1)
    sqs.change_message_visibility(QueueUrl=triggers, ReceiptHandle=current, VisibilityTimeout=0)
    receive(listener)
    listener.poll()
    assert received() == []
    assert messages(sqs, triggers) == (0, 0)
    assert len(runs(prefect, listener_of)) == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time between two looks, and no heartbeat needs to be missed to be dead."""
    monkeypatch.setattr("flows.listen.SECONDS_BETWEEN_LOOKS", 0)
    monkeypatch.setattr("flows.support.takeover.SECONDS_BETWEEN_LOOKS", 0)
    for module in ("decision", "recovery", "takeover"):
        monkeypatch.setattr(f"flows.support.{module}.MISSED_HEARTBEATS", 0)


@pytest.fixture
def in_flight(
    listener_of: Any,
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    request_for: MakeRequest,
    impatient: None,
) -> tuple[Listener, UUID]:
    """A listener with one message in flight, and the run that the message became."""
    sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(request_for(EXPORTS[0])))
    listener = listener_of()
    receive(listener)
    [run] = runs(prefect, listener_of)
    return listener, run.id


def test_a_cancelled_run_is_answered_with_a_failure(
    in_flight: tuple[Listener, UUID],
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    received: Received,
) -> None:
    listener, run_id = in_flight
    prefect.set_flow_run_state(run_id, Cancelled(), force=True)
    listener.poll()
    [callback] = received()
    assert callback["status"] == "failed"
    assert callback["downloadId"] == 512
    assert "its run was cancelled" in callback["error"]
    assert messages(sqs, triggers) == (0, 0)


@pytest.mark.parametrize("end", [Crashed(), Failed()], ids=lambda state: state.name)
def test_a_run_that_ended_without_a_callback_is_tried_again(
    end: State[Any],
    in_flight: tuple[Listener, UUID],
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    received: Received,
) -> None:
    listener, run_id = in_flight
    prefect.set_flow_run_state(run_id, end, force=True)
    listener.poll()
    assert prefect.read_flow_run(run_id).state_name == "AwaitingRetry"
    assert received() == []
    assert messages(sqs, triggers) == (0, 1)


def test_the_last_attempt_is_followed_by_one_failure_however_often_it_is_delivered(
    in_flight: tuple[Listener, UUID],
    listener_of: Any,
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    received: Received,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TriggerQueue, "acknowledge", lambda *_: None)  # as if it died just before
    listener, run_id = in_flight
    [export] = listener._in_flight.values()
    listener._settings.max_attempts = 1
    ends: list[State[Any]] = [Running(), Failed(message="The sentence of the run.")]
    for state in ends:
        prefect.set_flow_run_state(run_id, state, force=True)
    listener.poll()
    monkeypatch.undo()
    [callback] = received()
    assert callback["error"] == "The sentence of the run."
    assert callback_of(prefect, prefect.read_flow_run(run_id))
    listener._queue.release(export.delivery)
    receive(listener)
    listener.poll()
    assert received() == []
    assert messages(sqs, triggers) == (0, 0)


def test_a_running_run_without_heartbeats_is_marked_crashed_and_tried_again(
    in_flight: tuple[Listener, UUID], prefect: SyncPrefectClient, received: Received
) -> None:
    listener, run_id = in_flight
    prefect.set_flow_run_state(run_id, Running(), force=True)
    listener.poll()
    assert prefect.read_flow_run(run_id).state_name == "Crashed"
    listener.poll()
    assert prefect.read_flow_run(run_id).state_name == "AwaitingRetry"
    assert received() == []


def test_a_run_that_was_taken_but_never_started_is_tried_again(
    in_flight: tuple[Listener, UUID],
    prefect: SyncPrefectClient,
    received: Received,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flows.support.decision.TIME_TO_START_HERE", timedelta(seconds=-1))
    listener, run_id = in_flight
    prefect.set_flow_run_state(run_id, Pending(name="Submitting"), force=True)
    for _ in range(2):
        listener.poll()
    assert prefect.read_flow_run(run_id).state_name == "AwaitingRetry"
    assert received() == []


@pytest.mark.parametrize("state", [Pending(), Paused()], ids=lambda state: state.name)
def test_a_run_that_does_not_get_going_is_ended_and_answered(
    state: State[Any],
    in_flight: tuple[Listener, UUID],
    prefect: SyncPrefectClient,
    received: Received,
) -> None:
    listener, run_id = in_flight
    listener._settings.start_timeout = -1
    prefect.set_flow_run_state(run_id, state, force=True)
    listener.poll()
    assert prefect.read_flow_run(run_id).state_name == "Cancelled"
    [callback] = received()
    assert f"stayed {state.name} for too long" in callback["error"]


def test_a_run_that_does_not_end_is_cancelled(
    in_flight: tuple[Listener, UUID], prefect: SyncPrefectClient
) -> None:
    listener, run_id = in_flight
    listener._settings.run_timeout = -1
    prefect.set_flow_run_state(run_id, Running(), force=True)
    listener.poll()
    assert prefect.read_flow_run(run_id).state_name == "Cancelling"


def test_a_failure_that_cannot_be_noted_is_still_sent_only_once(
    in_flight: tuple[Listener, UUID],
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    received: Received,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("Prefect's API is away for a moment")

    monkeypatch.setattr("flows.listen.note_callback", refuse)
    listener, run_id = in_flight
    prefect.set_flow_run_state(run_id, Cancelled(), force=True)
    for _ in range(2):
        listener.poll()
    assert [callback["status"] for callback in received()] == ["failed"]
    assert messages(sqs, triggers) == (0, 0)


def test_a_run_deleted_in_the_ui_is_answered(
    in_flight: tuple[Listener, UUID], prefect: SyncPrefectClient, received: Received
) -> None:
    listener, run_id = in_flight
    prefect.delete_flow_run(run_id)
    listener.poll()
    [callback] = received()
    assert "its run was deleted" in callback["error"]


def test_a_run_that_completed_gets_no_second_callback(
    listener_of: Any,
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    request_for: MakeRequest,
    received: Received,
) -> None:
    sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(request_for(EXPORTS[0])))
    listener = listener_of()
    receive(listener)
    [run] = runs(prefect, listener_of)
    prefect.set_flow_run_state(run.id, Completed(), force=True)
    listener.poll()
    assert received() == []
    assert messages(sqs, triggers) == (0, 0)


@flow
def standing() -> Standing:
    with get_client(sync_client=True) as client:
        return Takeover(client).standing(reachable_since=0.0)


def listener_runs(prefect: SyncPrefectClient) -> list[FlowRun]:
    """Two runs of one deployment, the second to be run here."""
    name = f"standing-{uuid4()}"
    deployment = cast(UUID, cast(RunnerDeployment, standing.to_deployment(name)).apply())
    return [prefect.create_flow_run_from_deployment(deployment) for _ in range(2)]


@pytest.mark.parametrize("state", [Running(), Pending()], ids=lambda state: state.name)
def test_the_run_of_a_listener_that_died_or_never_started_is_ended_by_the_next(
    state: State[Any],
    prefect: SyncPrefectClient,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flows.support.takeover.TIME_TO_START", timedelta())
    dead, alive = listener_runs(prefect)
    prefect.set_flow_run_state(dead.id, state, force=True)
    assert run_flow(standing, flow_run=alive) is Standing.LISTENS
    ended = prefect.read_flow_run(dead.id)
    assert (ended.state_name, ended.state and ended.state.message) == (
        "Cancelled",
        "Died; another listener has taken over",
    )


@pytest.mark.parametrize(
    "state", [Paused(name="Suspended"), Cancelling(), Cancelled()], ids=lambda state: state.name
)
def test_a_listener_whose_run_is_no_longer_running_is_told_so(
    state: State[Any], prefect: SyncPrefectClient
) -> None:
    seen = []

    @flow
    def put_aside() -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(runtime.flow_run.id), state, force=True)
            seen.append(Takeover(client).standing(reachable_since=0.0))

    with suppress(Exception):  # Prefect's engine has an opinion of its own on the end
        put_aside()
    assert seen == [Standing.NOT_RUNNING]


@pytest.fixture
def listening(
    listener_of: Any, prefect: SyncPrefectClient, triggers: str
) -> Callable[..., AbstractContextManager[subprocess.Popen[str]]]:
    """Runs the flow `listen` as a process, its log a file to read."""

    @contextmanager
    def start(log: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
        name = f"create-batches/{prefect.read_deployment(listener_of.deployment).name}"
        code = f"from flows.listen import listen; listen({triggers!r}, {name!r})"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                env={**os.environ, **environment},
                stderr=output,
                text=True,
            )
        try:
            yield process
        finally:
            process.terminate()  # killed, it would leave a run that is Running for ever
            process.wait(timeout=60)

    return start


def test_sigterm_ends_the_listener_cleanly_and_hands_its_messages_back(
    listening: Any, sqs: Any, triggers: str, request_for: MakeRequest, tmp_path: Path
) -> None:
    sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(request_for(EXPORTS[0])))
    with listening(tmp_path / "log") as process:
        eventually(lambda: messages(sqs, triggers) == (0, 1))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert messages(sqs, triggers) == (1, 0)


def test_a_listener_waits_for_a_service_that_is_away_and_says_so_once(
    listening: Any, sqs: Any, triggers: str, request_for: MakeRequest, tmp_path: Path
) -> None:
    sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(request_for(EXPORTS[0])))
    port, log = free_port(), tmp_path / "log"
    with listening(log, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}") as process:
        eventually(lambda: "Waiting for a service" in log.read_text())
        late = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        late.start()  # with the queues of the other one, being in the same process
        try:
            eventually(lambda: messages(sqs, triggers) == (0, 1))
            eventually(lambda: "All services answer again" in log.read_text())
            process.terminate()
            assert process.wait(timeout=60) == 0
        finally:
            late.stop()
    assert log.read_text().count("Waiting for a service") == 1
