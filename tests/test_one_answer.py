"""One trigger, one answer: of junk among the messages, of processes that are killed or stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import State, StateType
from prefect.states import Crashed, Suspended

from bench.processes import process_of
from flows.support.recovery import failed_attempts
from tests.biospex import Biospex, messages
from tests.conftest import EXPORTS
from tests.processes import eventually, kill, run_named, serving

pytestmark = pytest.mark.usefixtures("prefect_api", "aws", "workspace")


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
        process = cast(int, process_of(export.id))
        os.kill(process, signal.SIGSTOP)
        prefect.set_flow_run_state(export.id, Crashed(message="Out of reach"), force=True)
        # As another task of a pool would; the service itself waits for the process that it has.
        elsewhere = [sys.executable, "-m", "prefect", "flow-run", "execute", str(export.id)]
        assert subprocess.run(elsewhere).returncode == 0
        os.kill(process, signal.SIGCONT)
        eventually(lambda: process_of(export.id) is None)
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


def test_a_suspended_listener_starts_no_export_and_goes_on_when_it_is_resumed(
    prefect: SyncPrefectClient, biospex: Biospex
) -> None:
    with serving(biospex, VISIBILITY_TIMEOUT="30"):
        listening = run_named(prefect, "listen for exports", StateType.RUNNING)
        process = eventually(lambda: process_of(listening.id))
        suspended: State[Any] = Suspended(timeout_seconds=3600)
        prefect.set_flow_run_state(listening.id, suspended)
        eventually(lambda: not Path(f"/proc/{process}").exists())
        biospex.send(biospex.request(EXPORTS[0]))
        assert prefect.read_flow_run(listening.id).state_name == "Suspended"
        assert biospex.triggers() == (1, 0)
        prefect.resume_flow_run(listening.id)
        eventually(lambda: not sum(biospex.triggers()))
    assert biospex.statuses() == ["success"]
