"""The flow of one export, against S3 and SQS over HTTP and a real Prefect server.

test_finished.py has the batches, the callback and the page of runs that succeed.
"""

import zipfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State

from blocks.workspace import Workspace
from flows.create_batches import create_batches
from splitter.errors import ExportError
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex
from tests.helpers.pages import page_of

pytestmark = pytest.mark.usefixtures("prefect_api", "aws", "workspace")


def test_a_repeated_run_makes_missing_batches_and_a_changed_export_all(
    biospex: Biospex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "1")
    biospex.s3.put_bucket_versioning(
        Bucket=biospex.bucket, VersioningConfiguration={"Status": "Enabled"}
    )  # so that every upload leaves a trace
    archive = tmp_path / "41-2-x.zip"

    def request(image: bytes) -> Any:
        with zipfile.ZipFile(archive, "w") as export:
            for name in ("a.jpg", "b.jpg", "c.jpg"):
                export.writestr(zipfile.ZipInfo(name), image)
            manifest = "imageName\na.jpg\nb.jpg\nc.jpg\n"
            export.writestr(zipfile.ZipInfo("manifest.csv"), manifest)
        return biospex.request(archive)

    def uploads() -> list[str]:
        listed = biospex.s3.list_object_versions(Bucket=biospex.bucket, Prefix="batch/")
        return sorted(version["Key"].removeprefix("batch/") for version in listed["Versions"])

    def stored() -> bytes:
        found = biospex.s3.get_object(Bucket=biospex.bucket, Key=f"batch/{second}")
        assert found["ContentType"] == "application/zip"
        return found["Body"].read()

    message = request(b"old image")
    first, second, third = create_batches(message).batch_files
    before = stored()
    biospex.delete_batch(second)
    killed = [f"batch/{first}", "batch/41-2-x-part77.zip"]
    others = ["batch/41-2-x-parts-part1.zip", f"batch/{first}.zip", "batch/x-part1.zip"]
    for key in (*killed, *others):
        biospex.s3.create_multipart_upload(Bucket=biospex.bucket, Key=key)
    create_batches(message)
    assert stored() == before
    assert uploads() == sorted([first, second, second, third])
    assert sorted(biospex.incomplete_uploads()) == sorted(others)

    create_batches(request(b"new image"))
    assert biospex.batch(first)["a.jpg"] == b"new image"
    assert len(uploads()) == 4 + 3
    assert biospex.statuses() == ["success"] * 3


def test_a_bad_export_has_one_sentence_in_callback_state_log_and_page(
    biospex: Biospex,
    prefect: SyncPrefectClient,
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "1")
    monkeypatch.setenv("DOCS_URL", "https://docs.example/")
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as export:
        export.writestr("a.jpg", b"image")
        export.writestr("manifest.csv", "imageName\na.jpg\nb.jpg\n")
    with caplog.at_level("INFO"):
        state: State[Any] = create_batches(biospex.request(tmp_path / "e.zip"), return_state=True)

    [callback] = biospex.callbacks()
    sentence = callback.pop("error")
    assert "row 3 names 'b.jpg', which is not in the archive" in sentence
    assert "\n" not in sentence
    assert callback == {"function": "BiospexBatchCreator", "status": "failed", "downloadId": 512}
    assert biospex.batches() == []
    assert list(workspace.iterdir()) == []

    assert state.is_failed()
    assert (state.name, state.message) == ("Export refused", sentence)
    assert isinstance(state.result(raise_on_failure=False), ExportError)
    errors = [
        line.getMessage().partition(":")[0]
        for line in caplog.records
        if line.levelname == "ERROR" and line.name == "prefect.flow_runs"
    ]
    assert errors == ["No batches", "What to do"]
    assert not any(line.exc_info for line in caplog.records if line.levelname != "DEBUG")

    page = page_of(prefect, state)
    summary = str(page["summary"].data)
    assert summary.startswith("**No batches:** ")
    assert "**Who must act:** whoever made the export" in summary
    assert "[messages.md](https://docs.example/messages.md)" in summary
    assert "batches" not in page


def test_a_request_without_an_address_fails_and_sends_nothing(biospex: Biospex) -> None:
    with pytest.raises(ExportError, match="'downloadId' must be a number or a short text"):
        create_batches(biospex.request(EXPORTS[0], downloadId=None))
    assert biospex.callbacks() == []


def test_a_run_uses_the_workspace_block_that_an_operator_saved(
    biospex: Biospex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "not-mounted"
    block = f"biospex-{uuid4()}"
    monkeypatch.setattr("blocks.saved.BLOCK_NAME", block)
    Workspace(efs_path=missing, max_tmp_size=0).save(block)
    try:
        with pytest.raises(
            Exception, match=rf"EFS path of the block .*/{block} .*not-mounted does"
        ):
            create_batches(biospex.request(EXPORTS[0]))
        assert not missing.exists()
        assert "tell the operator" in biospex.callbacks()[0]["error"]
    finally:
        Workspace.delete(block)


def test_an_error_on_the_run_page_fails_no_export(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Prefect's API is away for a moment")

    def out_of_memory(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("flows.run_page.progress.update_progress_artifact", refuse)
    monkeypatch.setattr("flows.run_page.artifacts.create_table_artifact", refuse)
    monkeypatch.setattr("flows.run_page.artifacts.create_markdown_artifact", refuse)
    monkeypatch.setattr("flows.run_page.pictures.contact_sheet", out_of_memory)
    create_batches(biospex.request(EXPORTS[0]))
    assert biospex.statuses() == ["success"]


@pytest.mark.parametrize(
    ("variable", "patterns", "answers"),
    [("ALLOWED_BUCKETS", "biospex-*", 1), ("ALLOWED_QUEUES", "https://sqs.us-east-2.*", 0)],
)
def test_buckets_and_queues_that_are_not_allowed_are_not_used(
    variable: str, patterns: str, answers: int, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, patterns)
    with pytest.raises(ExportError, match="not allowed to use"):
        create_batches(biospex.request(EXPORTS[0]))
    assert biospex.statuses() == ["failed"] * answers
    assert biospex.batches() == []


def test_a_missing_callback_queue_is_reported_before_the_work(
    biospex: Biospex, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        state: State[Any] = create_batches(
            biospex.request(EXPORTS[0], updatesQueueUrl=f"{biospex.queue_url}-deleted"),
            return_state=True,
        )
    assert state.is_failed()
    assert "-deleted', where the answer goes, cannot be used" in str(state.message)
    assert state.name == "Needs operator"
    assert "No batches: " in caplog.text
    assert "What to do: " in caplog.text
    assert biospex.batches() == []


def test_a_failed_callback_reports_that_the_batches_exist(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = biospex.sqs.create_queue(QueueName=f"gone-{biospex.bucket}")["QueueUrl"]

    def checked_and_then_deleted(*_: object) -> None:
        biospex.sqs.delete_queue(QueueUrl=gone)

    monkeypatch.setattr("splitter.aws.CallbackQueue.check", checked_and_then_deleted)
    with caplog.at_level("INFO"):
        state: State[Any] = create_batches(
            biospex.request(EXPORTS[0], updatesQueueUrl=gone), return_state=True
        )
    assert state.is_failed()
    assert str(state.message).startswith("Batches were created, but the callback was not sent: ")
    assert "Batches were created, but the callback was not sent: " in caplog.text
    assert "What to do: " in caplog.text
    assert biospex.batches()


def test_a_fault_of_the_program_is_left_to_the_listener(
    biospex: Biospex, prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("nobody thought of it")

    monkeypatch.setattr("flows.split.choose_lane", fail)
    state: State[Any] = create_batches(biospex.request(EXPORTS[0]), return_state=True)
    with pytest.raises(KeyError, match="nobody"):
        state.result()
    assert biospex.callbacks() == []
    page = page_of(prefect, state)
    assert "callback" not in page
    summary = str(page["summary"].data)
    assert summary.startswith("**No batches yet:** ")
    assert "If there is none, the listener tries the export again before it sends one." in summary
