"""Splitting an archive without BIOSPEX, and planning it: what a person types and reads."""

import re
from pathlib import Path
from runpy import run_module
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings

from cli.submit import POOL, follow, main
from flows.create_batches import create_batches
from splitter.errors import ExportError, SetupError
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex
from tests.helpers.pages import this_run

pytestmark = [
    pytest.mark.prefect_server("serve"),
    pytest.mark.usefixtures("prefect_api", "aws", "workspace"),
]

Printed = pytest.CaptureFixture[str]


def test_a_run_that_made_no_batches_is_followed_to_its_sentence(
    prefect: SyncPrefectClient, biospex: Biospex, tmp_path: Path, capsys: Printed
) -> None:
    """flows/test_serve.py follows one that made batches."""
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\3\4 and no more")
    state: State[Any] = create_batches(biospex.request(broken), return_state=True)
    assert follow(prefect, this_run(state)) == 1
    printed = capsys.readouterr().out
    assert "/runs/flow-run/" in printed
    assert "  Export refused" in printed
    assert "The archive is damaged or incomplete" in printed


def test_the_plan_goes_by_the_settings_of_the_work_pool(
    prefect: SyncPrefectClient, biospex: Biospex, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    env = {"BATCH_SIZE": "10", "SPLIT_STRATEGY": "splice", "VERIFY": None, "OTHER": "1"}
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
    origins, *lines = capsys.readouterr().out.splitlines()
    assert "BATCH_SIZE=10 (work pool biospex-ecs)" in origins
    assert "SPLIT_STRATEGY" not in origins  # the shell's overrides the pool's
    assert "OTHER" not in origins
    assert len([line for line in lines if re.match(r" +\d+ +\d", line)]) == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["s3://{bucket}/export/gone.zip"], "There is no export 'export/gone.zip'"),
        (["s3://{bucket}/export/gone.zip", "--plan"], "There is no export 'export/gone.zip'"),
        (["export/41.zip"], "write it like s3://"),
    ],
)
def test_the_reason_for_a_refused_submission_is_named(
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
    with pytest.raises((ExportError, SetupError, SystemExit), match=sentence):
        main([argument.format(archive=archive) for argument in arguments])


@pytest.mark.parametrize("options", [[], ["--plan"]])
def test_submitting_needs_prefect(options: list[str]) -> None:
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(SetupError, match="PREFECT_API_URL is not set"),
    ):
        main(["s3://bucket/export/a.zip", *options])


@pytest.mark.filterwarnings("ignore:'cli.submit' found in sys.modules")
def test_a_refusal_is_one_line(biospex: Biospex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_SIZE", "many")
    monkeypatch.setattr("sys.argv", ["submit", biospex.address(EXPORTS[0])])
    with pytest.raises(SystemExit) as end:
        run_module("cli.submit", run_name="__main__")
    assert str(end.value.code).startswith("These settings cannot be used: BATCH_SIZE='many'")
    assert "\n" not in str(end.value.code)


def test_ctrl_c_ends_in_one_line_and_leaves_the_run_alone(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    def press(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("TRIGGER_QUEUE_URL", biospex.trigger_queue_url)
    monkeypatch.setenv("UPDATES_QUEUE_URL", biospex.queue_url)
    monkeypatch.setattr("time.sleep", press)
    assert main([biospex.address(EXPORTS[0]), "--answer"]) == 130
    sent, _, *rest = capsys.readouterr().out.splitlines()
    assert sent.startswith("Sent the trigger")
    assert rest == ["No longer following. The run continues; its page shows its outcome."]
    assert biospex.triggers() == (1, 0)
