"""Both deployments served by a process of its own, which is killed in part or as a whole."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import State, StateType
from prefect.states import Crashed, Suspended

from cli.services import child, served
from flows.support.recovery import failed_attempts
from tests.biospex import Biospex, messages
from tests.conftest import EXPORTS
from tests.processes import child_of, eventually, kill, run_named

pytestmark = pytest.mark.usefixtures("prefect_api", "aws", "workspace")


def serving(
    biospex: Biospex, **environment: str
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Both flows in a process of their own, at BIOSPEX's trigger queue."""
    return served({"TRIGGER_QUEUE_URL": biospex.trigger_queue_url, **environment})


def test_both_flows_served_answer_every_trigger_and_log_no_secret(
    prefect_api: dict[str, str], biospex: Biospex, capfd: pytest.CaptureFixture[str]
) -> None:
    good = biospex.request(EXPORTS[0], downloadId="good")
    lost = biospex.request(EXPORTS[0], downloadId="lost", exportPath="export/gone.zip")
    bad = {**good, "downloadId": "bad", "file": "../x.zip", "totalSize": "?"}
    biospex.send(good, lost, bad, "junk")
    environment = {
        "BATCH_SIZE": "10",
        "AWS_SECRET_ACCESS_KEY": "not-for-any-log",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
    }
    with serving(biospex, **environment) as server:
        eventually(lambda: server.poll() is not None or sum(biospex.triggers()) == 1)
        assert server.poll() is None
    answered = biospex.callbacks()
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
    assert sum(biospex.triggers()) == 1  # the junk
    log = "".join(capfd.readouterr())
    assert "ALLOWED_QUEUES is not set" in log
    assert "not-for-any-log" not in log
    assert "Signature" not in log
    assert not re.search("[A-Za-z0-9+/=]{100}", log)  # what a receipt handle looks like


def test_of_a_crowd_what_can_be_answered_is_and_the_rest_are_dead_letters_soon(
    prefect: SyncPrefectClient, biospex: Biospex
) -> None:
    redrive = biospex.sqs.get_queue_attributes(
        QueueUrl=biospex.trigger_queue_url, AttributeNames=["RedrivePolicy"]
    )
    policy = {**json.loads(redrive["Attributes"]["RedrivePolicy"]), "maxReceiveCount": 3}
    biospex.sqs.set_queue_attributes(
        QueueUrl=biospex.trigger_queue_url, Attributes={"RedrivePolicy": json.dumps(policy)}
    )
    good = biospex.request(EXPORTS[0], downloadId="good")
    secret = {"__prefect_kind": "workspace_variable", "variable_name": "secret"}
    prefect.create_variable(VariableCreate(name="secret", value="the variable's value"))
    fields = ["file", "exportPath", "totalSize", "s3Bucket"]
    biospex.send(
        good,
        {**good, "updatesQueueUrl": f"{biospex.queue_url}-deleted"},
        *({**good, "downloadId": field, field: secret} for field in fields),
        {**good, "downloadId": secret},
        {**good, "updatesQueueUrl": secret},
        {**good, "downloadId": "zero", "file": "\0.zip"},
        "junk",
    )
    with serving(biospex, MAX_ATTEMPTS="1") as server:
        listening = run_named(prefect, "listen for exports", StateType.RUNNING)
        eventually(lambda: server.poll() is not None or not sum(biospex.triggers()))
        assert prefect.read_flow_run(listening.id).run_count == 1
    answers = biospex.callbacks()
    assert sorted(answer["downloadId"] for answer in answers) == sorted([*fields, "good", "zero"])
    assert [answer["downloadId"] for answer in answers if answer["status"] == "success"] == ["good"]
    assert "the variable's value" not in json.dumps(answers)
    assert sum(messages(biospex.sqs, f"{biospex.trigger_queue_url}-dead")) == 4


def test_killed_processes_come_back_and_every_trigger_is_answered_once(
    prefect: SyncPrefectClient, biospex: Biospex
) -> None:
    biospex.send(biospex.request(EXPORTS[0], downloadId="killed"))
    with serving(biospex, VISIBILITY_TIMEOUT="30") as server:
        name = f"{EXPORTS[0].name} for download killed"
        export = run_named(prefect, name, StateType.RUNNING)
        kill(export.id)
        listening = run_named(prefect, "listen for exports", StateType.RUNNING)
        kill(listening.id)
        eventually(lambda: server.poll() is not None or not sum(biospex.triggers()))
        assert server.poll() is None
    assert biospex.statuses() == ["success"]
    # The service may be stopped while the process of a run that has completed still exits.
    ends = failed_attempts(prefect.read_flow_run_states(export.id))
    assert ends[0].name == "Crashed"
    of_the_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[export.id]))
    messages_logged = [line.message for line in prefect.read_logs(of_the_run)]
    assert any(line.startswith("Attempt 1 ended Crashed: ") for line in messages_logged)
    assert prefect.read_flow_run(listening.id).run_count == 2


def test_an_attempt_that_was_only_out_of_reach_says_nothing_once_another_has_begun(
    prefect: SyncPrefectClient, biospex: Biospex
) -> None:
    biospex.send(biospex.request(EXPORTS[0], downloadId="stopped"))
    with serving(biospex, VISIBILITY_TIMEOUT="30"):
        export = run_named(prefect, f"{EXPORTS[0].name} for download stopped", StateType.RUNNING)
        process = cast(int, child_of(export.id))
        os.kill(process, signal.SIGSTOP)
        prefect.set_flow_run_state(export.id, Crashed(message="Out of reach"), force=True)
        # As another task of a pool would; the service itself waits for the process that it has.
        elsewhere = [sys.executable, "-m", "prefect", "flow-run", "execute", str(export.id)]
        assert subprocess.run(elsewhere).returncode == 0
        os.kill(process, signal.SIGCONT)
        eventually(lambda: child_of(export.id) is None)
    assert biospex.statuses() == ["success"]
    assert prefect.read_flow_run(export.id).state_name == "Completed"


def test_of_two_listeners_the_one_that_started_later_stays(
    prefect_api: dict[str, str], prefect: SyncPrefectClient, biospex: Biospex
) -> None:
    with serving(biospex):
        first = run_named(prefect, "listen for exports", StateType.RUNNING)
        second = prefect.create_flow_run_from_deployment(cast(UUID, first.deployment_id))
        eventually(lambda: prefect.read_flow_run(first.id).state_type == StateType.COMPLETED)
        assert prefect.read_flow_run(second.id).state_type == StateType.RUNNING


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_end_the_service_and_the_listeners_run(
    number: signal.Signals, prefect: SyncPrefectClient, biospex: Biospex, tmp_path: Path
) -> None:
    environment = {"TRIGGER_QUEUE_URL": biospex.trigger_queue_url}
    command = [sys.executable, "-m", "flows.serve"]
    with (tmp_path / "log").open("wb") as log, child(command, environment, log) as server:
        listening = run_named(prefect, "listen for exports", StateType.RUNNING)
        # Before it has its own handler, Prefect's is at work.
        eventually(lambda: "Listening to" in (tmp_path / "log").read_text())
        server.send_signal(number)
        server.wait(timeout=60)
    ended = prefect.read_flow_run(listening.id).state
    assert ended is not None
    assert ended.is_final()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_suspended_listener_starts_no_export_and_goes_on_when_it_is_resumed(
    prefect: SyncPrefectClient, biospex: Biospex
) -> None:
    with serving(biospex, VISIBILITY_TIMEOUT="30"):
        listening = run_named(prefect, "listen for exports", StateType.RUNNING)
        process = eventually(lambda: child_of(listening.id))
        suspended: State[Any] = Suspended(timeout_seconds=3600)
        prefect.set_flow_run_state(listening.id, suspended)
        eventually(lambda: not Path(f"/proc/{process}").exists())
        biospex.send(biospex.request(EXPORTS[0]))
        assert prefect.read_flow_run(listening.id).state_name == "Suspended"
        assert biospex.triggers() == (1, 0)
        prefect.resume_flow_run(listening.id)
        eventually(lambda: not sum(biospex.triggers()))
    assert biospex.statuses() == ["success"]


def test_a_run_form_submitted_empty_fails_once_with_a_sentence(
    prefect: SyncPrefectClient, biospex: Biospex
) -> None:
    with serving(biospex):
        run_named(prefect, "listen for exports", StateType.RUNNING)
        deployment = prefect.read_deployment_by_name("create-batches/create-batches")
        assert deployment.parameter_openapi_schema is not None
        assert deployment.parameter_openapi_schema["required"] == ["request"]
        run = prefect.create_flow_run_from_deployment(deployment.id)
        eventually(lambda: prefect.read_flow_run(run.id).state_type == StateType.FAILED)
        ended = prefect.read_flow_run(run.id)
    assert ended.state is not None
    assert "'downloadId' is missing" in str(ended.state.message)
    assert ended.run_count == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"TRIGGER_QUEUE_URL": ""}, "TRIGGER_QUEUE_URL is not set"),
        ({"PREFECT_API_URL": ""}, "PREFECT_API_URL is not set"),
        ({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "http://127.0.0.1:9/api does not answer"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no AWS credentials were found"),
    ],
    ids=["no queue", "no Prefect", "Prefect is away", "no credentials"],
)
def test_what_serving_needs_is_said_in_one_sentence(
    changes: dict[str, str], sentence: str, biospex: Biospex, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "TRIGGER_QUEUE_URL": biospex.trigger_queue_url,
        "HOME": str(tmp_path),
    }
    environment |= {"AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in changes.items():
        environment[name] = value
        if not value:
            del environment[name]
    done = subprocess.run(
        [sys.executable, "-m", "flows.serve"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Cannot serve: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
