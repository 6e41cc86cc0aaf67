"""Splitting an archive without BIOSPEX, and planning it: what a person types and reads."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings

from cli.submit import POOL, SubmitError, main
from devtools.services import served
from splitter.errors import ExportError, SetupError
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex

pytestmark = [
    pytest.mark.prefect_server("serve"),
    pytest.mark.usefixtures("prefect_api", "aws", "workspace"),
]

Printed = pytest.CaptureFixture[str]


def submit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.submit", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_with_answer_a_trigger_is_sent_and_followed_to_its_callback(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    broken = f"s3://{biospex.bucket}/export/broken.zip"
    biospex.s3.put_object(
        Bucket=biospex.bucket, Key="export/broken.zip", Body=b"PK\3\4 and no more"
    )
    monkeypatch.setenv("TRIGGER_QUEUE_URL", biospex.trigger_queue_url)
    monkeypatch.setenv("UPDATES_QUEUE_URL", biospex.queue_url)
    with served(os.environ):
        assert main([biospex.address(EXPORTS[0]), "--answer"]) == 0
        done = capsys.readouterr().out
        assert main([broken, "--answer"]) == 1
        refused = capsys.readouterr().out
    lines = done.splitlines()
    sent, _, download = lines[0].rpartition(" ")
    assert sent == f"Sent the trigger for {EXPORTS[0].name} as download"
    assert "/runs/flow-run/" in lines[1]
    assert any(line.endswith("  Completed") for line in lines)
    assert json.loads(done[done.index("{\n") : done.rindex("}") + 1]) == {
        "function": "BiospexBatchCreator",
        "status": "success",
        "downloadId": download,
        "batchFiles": [f"{EXPORTS[0].stem}-part1.zip"],
    }
    assert "The archive is damaged or incomplete" in refused


def test_the_plan_goes_by_the_settings_of_the_work_pool(
    prefect: SyncPrefectClient, biospex: Biospex, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    env = {"BATCH_SIZE": "10", "SPLIT_STRATEGY": "splice", "EFS_PATH": "/efs/batch", "OTHER": "1"}
    template = {
        "job_configuration": {"command": "{{ command }}"},
        "variables": {"properties": {"command": {}, "env": {"default": env}}, "type": "object"},
    }
    pool = WorkPoolCreate(name=POOL, type="ecs", base_job_template=template)
    prefect.create_work_pool(pool, overwrite=True)
    monkeypatch.setenv("SPLIT_STRATEGY", "extract")
    try:
        assert main([biospex.address(EXPORTS[0]), "--plan"]) == 0
    finally:
        prefect.delete_work_pool(POOL)
    said, *lines = capsys.readouterr().out.splitlines()
    assert "BATCH_SIZE=10 (work pool biospex-ecs)" in said
    assert "SPLIT_STRATEGY=extract (this shell)" in said
    assert "OTHER" not in said
    assert len([line for line in lines if re.match(r" +\d+ +\d", line)]) == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["s3://{bucket}/export/gone.zip"], "There is no export 'export/gone.zip'"),
        (["s3://{bucket}/export/gone.zip", "--plan"], "There is no export 'export/gone.zip'"),
        (["export/41.zip"], "write it like s3://"),
    ],
)
def test_what_cannot_be_submitted_is_named(
    arguments: list[str], complaint: str, biospex: Biospex
) -> None:
    with pytest.raises(ExportError, match=complaint):
        main([argument.format(bucket=biospex.bucket) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["{archive}", "--answer"], {}, "TRIGGER_QUEUE_URL and UPDATES_QUEUE_URL must be set"),
        (["{archive}"], {"AWS_ACCESS_KEY_ID": ""}, "no AWS credentials were found"),
        ([], {}, "Name the archive: make submit ARCHIVE=s3://bucket/key"),
        (["{archive}"], {"BATCH_SIZE": "9" * 30}, "BATCH_SIZE='999"),
        (["{archive}"], {"ALLOWED_BUCKETS": "biospex-*"}, "not allowed"),
    ],
)
def test_a_setting_or_argument_that_is_missing_is_named(
    arguments: list[str],
    environment: dict[str, str],
    sentence: str,
    biospex: Biospex,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = biospex.address(EXPORTS[0])
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ExportError, SetupError, SubmitError, SystemExit), match=sentence):
        main([argument.format(archive=archive) for argument in arguments])


@pytest.mark.parametrize("options", [[], ["--plan"]])
def test_without_prefect_nothing_is_submitted(options: list[str]) -> None:
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(SetupError, match="PREFECT_API_URL is not set"),
    ):
        main(["s3://bucket/export/a.zip", *options])


def test_a_refusal_is_one_line(biospex: Biospex) -> None:
    done = submit(biospex.address(EXPORTS[0]), BATCH_SIZE="many")
    assert done.returncode == 1
    assert done.stderr.startswith("These settings cannot be used: BATCH_SIZE='many'")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_ends_in_one_line_and_leaves_the_run_alone(
    prefect: SyncPrefectClient, biospex: Biospex
) -> None:
    queues = {
        "TRIGGER_QUEUE_URL": biospex.trigger_queue_url,
        "UPDATES_QUEUE_URL": biospex.queue_url,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.submit", biospex.address(EXPORTS[0]), "--answer"],
        env={**os.environ, **queues},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline().startswith("Sent the trigger")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    printed, complaints = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "The run continues" in printed
    assert complaints == ""
    assert biospex.triggers() == (1, 0)
