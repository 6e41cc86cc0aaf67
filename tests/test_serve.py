"""Both deployments served by a process of its own."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType

from cli.services import child
from tests.biospex import Biospex
from tests.conftest import EXPORTS
from tests.processes import eventually, run_named, serving

pytestmark = pytest.mark.usefixtures("prefect_api", "aws", "workspace")


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
