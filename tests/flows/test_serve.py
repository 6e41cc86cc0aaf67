"""Both deployments served by a process of its own."""

import json
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from runpy import run_module
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import VariableCreate
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings

from cli.submit import main as submit
from devtools.services import child
from flows.listening.setup import check_services
from splitter.errors import SetupError
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex, messages
from tests.helpers.processes import eventually, run_named, serving

pytestmark = [
    pytest.mark.prefect_server("serve"),
    pytest.mark.usefixtures("prefect_api", "aws"),
]


FIELDS = ["file", "exportPath", "totalSize", "s3Bucket"]
"""In which a message asks for the value of a variable of Prefect's."""


@dataclass(frozen=True)
class Crowd:
    """The results of many messages, good and bad.

    Attributes:
        answers: all callbacks.
        dead_letters: how many messages were given up.
        log: what the service and its runs have printed.
    """

    answers: list[dict[str, Any]]
    dead_letters: int
    log: str


@pytest.fixture(scope="module")
def crowd(prefect_api: dict[str, str], aws: str, tmp_path_factory: pytest.TempPathFactory) -> Crowd:
    biospex = Biospex.new()
    redrive = biospex.sqs.get_queue_attributes(
        QueueUrl=biospex.trigger_queue_url, AttributeNames=["RedrivePolicy"]
    )
    policy = {**json.loads(redrive["Attributes"]["RedrivePolicy"]), "maxReceiveCount": 3}
    biospex.sqs.set_queue_attributes(
        QueueUrl=biospex.trigger_queue_url, Attributes={"RedrivePolicy": json.dumps(policy)}
    )
    good = biospex.request(EXPORTS[0], downloadId="good")
    secret = {"__prefect_kind": "workspace_variable", "variable_name": "secret"}
    biospex.send(
        good,
        {**good, "updatesQueueUrl": f"{biospex.queue_url}-deleted"},
        *({**good, "downloadId": field, field: secret} for field in FIELDS),
        {**good, "downloadId": secret},
        {**good, "updatesQueueUrl": secret},
        {**good, "downloadId": "zero", "file": "\0.zip"},
        {**good, "downloadId": "lost", "exportPath": f"gone/{good['file']}"},
        {**good, "downloadId": "bad", "file": "../x.zip", "totalSize": "?"},
        "junk",
    )
    workspace = str(tmp_path_factory.mktemp("workspace"))
    log = tmp_path_factory.mktemp("service") / "log"
    environment = {
        "BATCH_SIZE": "10",
        "MAX_ATTEMPTS": "1",
        "AWS_SECRET_ACCESS_KEY": "not-for-any-log",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "TMPDIR": workspace,
        "EFS_PATH": workspace,
    }
    with (
        get_client(sync_client=True) as prefect,
        log.open("wb") as output,
        serving(biospex, output, **environment) as server,
    ):
        prefect.create_variable(VariableCreate(name="secret", value="the variable's value"))
        listening = run_named(prefect, "listen for exports", StateType.RUNNING)
        eventually(lambda: server.poll() is not None or not sum(biospex.triggers()))
        assert server.poll() is None
        assert prefect.read_flow_run(listening.id).run_count == 1
    dead_letters = sum(messages(biospex.sqs, f"{biospex.trigger_queue_url}-dead"))
    return Crowd(biospex.callbacks(), dead_letters, log.read_text())


@pytest.mark.soak
def test_each_answerable_message_is_answered_once(crowd: Crowd) -> None:
    answers = {answer["downloadId"]: answer for answer in crowd.answers}
    assert sorted(answers) == sorted([*FIELDS, "good", "zero", "lost", "bad"])
    assert len(crowd.answers) == len(answers)
    good = answers.pop("good")
    assert (good["status"], len(good["batchFiles"])) == ("success", 3)
    assert {answer["status"] for answer in answers.values()} == {"failed"}
    assert "There is no export 'gone/" in answers["lost"]["error"]
    for field in ("'file'", "'totalSize'"):
        assert field in answers["bad"]["error"]
    assert "the variable's value" not in json.dumps(crowd.answers)


@pytest.mark.soak
def test_unanswerable_messages_become_dead_letters(crowd: Crowd) -> None:
    assert crowd.dead_letters == 4


@pytest.mark.soak
def test_no_log_has_a_secret(crowd: Crowd) -> None:
    assert_no_secret(crowd.log)


def test_a_service_answers_a_trigger_and_a_form_and_ends_at_a_signal(
    prefect: SyncPrefectClient,
    biospex: Biospex,
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRIGGER_QUEUE_URL", biospex.trigger_queue_url)
    monkeypatch.setenv("UPDATES_QUEUE_URL", biospex.queue_url)
    environment = {
        "AWS_SECRET_ACCESS_KEY": "not-for-any-log",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
    }
    command = [sys.executable, "-m", "flows.serve"]
    log = tmp_path / "log"
    with log.open("wb") as output, child(command, environment, output) as server:
        listening = run_named(prefect, "listen for exports", StateType.RUNNING)
        deployment = prefect.read_deployment_by_name("create-batches/create-batches")
        empty = prefect.create_flow_run_from_deployment(deployment.id)
        assert submit([biospex.address(EXPORTS[0]), "--answer"]) == 0
        eventually(lambda: prefect.read_flow_run(empty.id).state_type == StateType.FAILED)
        eventually(lambda: not sum(biospex.triggers()))
        before_its_end = len(log.read_text())
        server.send_signal(signal.SIGINT)  # it sends itself a SIGTERM then
        server.wait(timeout=60)
    assert biospex.statuses() == ["success"]
    assert_no_secret(log.read_text())
    assert "Traceback" not in log.read_text()[before_its_end:]
    assert deployment.parameter_openapi_schema is not None
    assert deployment.parameter_openapi_schema["required"] == ["request"]
    failed = prefect.read_flow_run(empty.id)
    assert failed.state is not None
    assert "'downloadId' is missing" in str(failed.state.message)
    assert failed.run_count == 1
    ended = prefect.read_flow_run(listening.id).state
    assert ended is not None
    assert ended.is_final()

    printed = capsys.readouterr().out
    first, page, *states = printed.splitlines()
    sent, _, download = first.rpartition(" ")
    assert sent == f"Sent the trigger for {EXPORTS[0].name} as download"
    assert "/runs/flow-run/" in page
    assert any(line.endswith("  Completed") for line in states)
    assert json.loads(printed[printed.index("{\n") : printed.rindex("}") + 1]) == {
        "function": "BiospexBatchCreator",
        "status": "success",
        "downloadId": download,
        "batchFiles": [f"{EXPORTS[0].stem}-part1.zip"],
    }


def assert_no_secret(log: str) -> None:
    assert "ALLOWED_QUEUES is not set" in log
    assert "not-for-any-log" not in log
    assert "Signature" not in log
    assert not re.search("[A-Za-z0-9+/=]{100}", log)  # what a receipt handle looks like


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (None, "PREFECT_API_URL is not set"),
        ("http://127.0.0.1:9/api", "http://127.0.0.1:9/api does not answer"),
    ],
    ids=["none", "away"],
)
def test_serving_needs_prefect(url: str | None, sentence: str) -> None:
    with (
        temporary_settings(
            {PREFECT_API_URL: url} if url else {}, restore_defaults={PREFECT_API_URL}
        ),
        pytest.raises(SetupError, match=sentence),
    ):
        check_services()


def test_serving_needs_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SetupError, match="no AWS credentials were found"):
        check_services()


@pytest.mark.filterwarnings("ignore:'flows.serve' found in sys.modules")
def test_a_missing_requirement_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIGGER_QUEUE_URL", "")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        run_module("flows.serve", run_name="__main__")
    assert str(end.value.code).startswith("Cannot serve: TRIGGER_QUEUE_URL is not set; ")
    assert "\n" not in str(end.value.code)
