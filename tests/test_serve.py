"""Both deployments served by a process of its own, which is killed in part or as a whole."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import StateType

from cli.services import served
from flows.support.recovery import failed_attempts
from tests.conftest import BOTH_DATABASES, EXPORTS
from tests.processes import eventually, kill, messages, run_named

pytestmark = [pytest.mark.usefixtures("prefect_api", "aws", "workspace"), BOTH_DATABASES]

MakeRequest = Callable[..., Any]
Received = Callable[[], list[Any]]


def test_both_flows_served_answer_every_trigger_and_log_no_secret(
    prefect_api: dict[str, str],
    sqs: Any,
    triggers: str,
    request_for: MakeRequest,
    received: Received,
    capfd: pytest.CaptureFixture[str],
) -> None:
    good = request_for(EXPORTS[0], downloadId="good")
    lost = request_for(EXPORTS[0], downloadId="lost", exportPath="export/gone.zip")
    bad = {**good, "downloadId": "bad", "file": "../x.zip", "totalSize": "?"}
    for body in (json.dumps(good), json.dumps(lost), json.dumps(bad), "junk"):
        sqs.send_message(QueueUrl=triggers, MessageBody=body)
    environment = {
        **os.environ,
        "TRIGGER_QUEUE_URL": triggers,
        "BATCH_SIZE": "10",
        "AWS_SECRET_ACCESS_KEY": "not-for-any-log",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
    }
    with served(environment) as server:
        eventually(lambda: server.poll() is not None or sum(messages(sqs, triggers)) == 1)
        assert server.poll() is None
    answered = received()
    callbacks = {callback["downloadId"]: callback for callback in answered}
    assert len(answered) == len(callbacks)
    assert {name: callback["status"] for name, callback in callbacks.items()} == {
        "good": "success",
        "lost": "failed",
        "bad": "failed",
    }
    assert len(callbacks["good"]["batchFiles"]) == 3
    assert "'file'" in callbacks["bad"]["error"]
    assert "'totalSize'" in callbacks["bad"]["error"]
    assert sum(messages(sqs, triggers)) == 1  # the junk
    log = "".join(capfd.readouterr())
    assert "ALLOWED_QUEUES is not set" in log
    assert "not-for-any-log" not in log
    assert "Signature" not in log
    assert not re.search("[A-Za-z0-9+/=]{100}", log)  # what a receipt handle looks like


def test_killed_processes_come_back_and_every_trigger_is_answered_once(
    prefect: SyncPrefectClient,
    sqs: Any,
    triggers: str,
    request_for: MakeRequest,
    received: Received,
) -> None:
    request = request_for(EXPORTS[0], downloadId="killed")
    sqs.send_message(QueueUrl=triggers, MessageBody=json.dumps(request))
    environment = {**os.environ, "TRIGGER_QUEUE_URL": triggers, "VISIBILITY_TIMEOUT": "30"}
    with served(environment) as server:
        name = f"{EXPORTS[0].name} for download killed"
        export = run_named(prefect, name, StateType.RUNNING)
        kill(export.id)
        listening = run_named(prefect, "listen for exports", StateType.RUNNING)
        kill(listening.id)
        eventually(lambda: server.poll() is not None or not sum(messages(sqs, triggers)))
        assert server.poll() is None
    assert [callback["status"] for callback in received()] == ["success"]
    assert [state.name for state in failed_attempts(prefect.read_flow_run_states(export.id))] == [
        "Crashed"
    ]
    of_the_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[export.id]))
    messages_logged = [line.message for line in prefect.read_logs(of_the_run)]
    assert any(line.startswith("Attempt 1 ended Crashed: ") for line in messages_logged)
    assert prefect.read_flow_run(listening.id).run_count == 2


def test_of_two_listeners_the_one_that_started_later_stays(
    prefect_api: dict[str, str], prefect: SyncPrefectClient, triggers: str
) -> None:
    with served({**os.environ, "TRIGGER_QUEUE_URL": triggers}):
        first = run_named(prefect, "listen for exports", StateType.RUNNING)
        second = prefect.create_flow_run_from_deployment(cast(UUID, first.deployment_id))
        eventually(lambda: prefect.read_flow_run(first.id).state_type == StateType.COMPLETED)
        assert prefect.read_flow_run(second.id).state_type == StateType.RUNNING


def test_serving_without_a_queue_says_which_variable_is_missing() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRIGGER_QUEUE_URL"}
    done = subprocess.run(
        [sys.executable, "-m", "flows.serve"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Cannot serve: TRIGGER_QUEUE_URL is not set")
