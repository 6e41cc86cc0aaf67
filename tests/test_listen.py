"""The listener, against SQS over HTTP and a real Prefect server."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from moto.server import ThreadedMotoServer
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments.runner import RunnerDeployment
from prefect.flow_engine import run_flow
from prefect.logging import disable_run_logger
from prefect.states import Cancelled, Completed, Crashed, Failed, Paused, Pending, Running

from cli.services import free_port
from flows.create_batches import create_batches
from flows.listen import Listener, Succession, parse
from flows.support.recovery import has_called_back
from splitter.queues import TriggerQueue
from splitter.settings import Allowed, Settings
from tests.conftest import EXPORTS
from tests.processes import eventually, messages

pytestmark = pytest.mark.usefixtures("prefect_api", "aws", "workspace")

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
        settings = Settings(max_in_flight=max_in_flight)
        return Listener(queue, sqs, prefect, f"create-batches/{name}", settings, Allowed())

    make.deployment = prefect.read_deployment_by_name(f"create-batches/{name}").id  # type: ignore[attr-defined]
    with disable_run_logger():
        yield make


def take(listener: Listener) -> None:
    listener.take(threading.Event())


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
    take(listener_of())
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
    take(first)
    first.stop()
    assert messages(sqs, triggers) == (1, 0)
    take(second)
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
        take(listener)
    assert messages(sqs, triggers) == (3, 2)


def test_a_message_that_cannot_be_answered_is_left_for_the_redrive_policy(
    listener_of: Any, prefect: SyncPrefectClient, sqs: Any, triggers: str
) -> None:
    for body in JUNK:
        sqs.send_message(QueueUrl=triggers, MessageBody=body)
    listener = listener_of()
    take(listener)
    listener.watch()
    assert runs(prefect, listener_of) == []
    assert sum(messages(sqs, triggers)) == len(JUNK)


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
    take(listener)
    listener.watch()
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
    [export] = listener._exports.values()
    current = export.delivery.receipt_handle
    export.delivery.receipt_handle = "expired after twelve hours"
    export.kept = 0.0  # long ago: time to keep it, which fails
    listener.watch()
    prefect.set_flow_run_state(run_id, Cancelled(), force=True)
    listener.watch()
    assert len(received()) == 1
    assert messages(sqs, triggers) == (0, 1)
    sqs.change_message_visibility(QueueUrl=triggers, ReceiptHandle=current, VisibilityTimeout=0)
    take(listener)
    listener.watch()
    assert received() == []
    assert messages(sqs, triggers) == (0, 0)
    assert len(runs(prefect, listener_of)) == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time for hooks, which do not run here, and none between two looks for heartbeats."""
    monkeypatch.setattr("flows.listen.TIME_FOR_HOOKS", timedelta())
    monkeypatch.setattr("flows.listen.SECONDS_BETWEEN_LOOKS", 0)
    monkeypatch.setattr("flows.support.recovery.MISSED_HEARTBEATS", 0)


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
    take(listener)
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
    listener.watch()
    [callback] = received()
    assert callback["status"] == "failed"
    assert callback["downloadId"] == 512
    assert "its run was cancelled" in callback["error"]
    assert messages(sqs, triggers) == (0, 0)


@pytest.mark.parametrize("end", [Crashed(), Failed()], ids=lambda state: state.name)
def test_a_run_that_ended_without_a_callback_is_resumed(
    end: State[Any],
    in_flight: tuple[Listener, UUID],
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    received: Received,
) -> None:
    listener, run_id = in_flight
    prefect.set_flow_run_state(run_id, end, force=True)
    listener.watch()
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
    monkeypatch.setenv("MAX_ATTEMPTS", "1")
    monkeypatch.setattr(TriggerQueue, "delete", lambda *_: None)  # as if it died just before
    listener, run_id = in_flight
    prefect.set_flow_run_state(run_id, Crashed(), force=True)
    listener.watch()
    monkeypatch.undo()
    sqs.purge_queue(QueueUrl=triggers)
    assert [callback["status"] for callback in received()] == ["failed"]
    assert has_called_back(prefect, prefect.read_flow_run(run_id))


def test_a_running_run_without_heartbeats_is_buried_and_resumed(
    in_flight: tuple[Listener, UUID], prefect: SyncPrefectClient, received: Received
) -> None:
    listener, run_id = in_flight
    prefect.set_flow_run_state(run_id, Running(), force=True)
    listener.watch()
    assert prefect.read_flow_run(run_id).state_name == "Crashed"
    listener.watch()
    assert prefect.read_flow_run(run_id).state_name == "AwaitingRetry"
    assert received() == []


def test_a_run_that_was_taken_but_never_started_is_resumed(
    in_flight: tuple[Listener, UUID],
    prefect: SyncPrefectClient,
    received: Received,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flows.listen.TIME_TO_START_HERE", timedelta(seconds=-1))
    listener, run_id = in_flight
    prefect.set_flow_run_state(run_id, Pending(name="Submitting"), force=True)
    for _ in range(2):
        listener.watch()
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
    listener._start_timeout = timedelta(seconds=-1)
    prefect.set_flow_run_state(run_id, state, force=True)
    listener.watch()
    assert prefect.read_flow_run(run_id).state_name == "Cancelled"
    [callback] = received()
    assert f"stayed {state.name} for too long" in callback["error"]


def test_a_run_that_does_not_end_is_interrupted(
    in_flight: tuple[Listener, UUID], prefect: SyncPrefectClient
) -> None:
    listener, run_id = in_flight
    listener._run_timeout = timedelta(seconds=-1)
    prefect.set_flow_run_state(run_id, Running(), force=True)
    listener.watch()
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
        listener.watch()
    assert [callback["status"] for callback in received()] == ["failed"]
    assert messages(sqs, triggers) == (0, 0)


def test_a_run_deleted_in_the_ui_is_answered(
    in_flight: tuple[Listener, UUID], prefect: SyncPrefectClient, received: Received
) -> None:
    listener, run_id = in_flight
    prefect.delete_flow_run(run_id)
    listener.watch()
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
    take(listener)
    [run] = runs(prefect, listener_of)
    prefect.set_flow_run_state(run.id, Completed(), force=True)
    listener.watch()
    assert received() == []
    assert messages(sqs, triggers) == (0, 0)


@pytest.mark.parametrize("body", [*JUNK[:1], '{"a": NaN}', "", "{", '{"a": Infinity}'])
def test_what_is_not_json_is_none(body: str) -> None:
    assert parse(body) is None


@flow
def heir() -> str | None:
    with get_client(sync_client=True) as client:
        return Succession(client).heir()


def test_the_run_of_a_listener_that_died_is_ended_by_the_next(
    prefect: SyncPrefectClient, impatient: None
) -> None:
    deployment = cast(UUID, cast(RunnerDeployment, heir.to_deployment(f"heir-{uuid4()}")).apply())
    dead, alive = (prefect.create_flow_run_from_deployment(deployment) for _ in range(2))
    prefect.set_flow_run_state(dead.id, Running(), force=True)
    assert run_flow(heir, flow_run=alive) is None
    ended = prefect.read_flow_run(dead.id)
    assert (ended.state_name, ended.state and ended.state.message) == (
        "Cancelled",
        "Died; another listener has taken over",
    )


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
