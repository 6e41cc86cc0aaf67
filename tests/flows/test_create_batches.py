"""The flow of one export, against S3 and SQS over HTTP and a real Prefect server."""

import csv
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRunResult

from blocks.workspace import Workspace
from flows.create_batches import create_batches
from splitter.errors import ExportError, SetupError
from splitter.messages import Request
from splitter.workspace import PREFIX
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex

pytestmark = pytest.mark.usefixtures("prefect_api", "aws", "workspace")


def source_files(archive: Path) -> dict[str, bytes]:
    """The export's files by their base name, by a path of its own: the library's plain reading."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as source:
            return {
                Path(info.filename).name: source.read(info)
                for info in source.infolist()
                if not info.is_dir()
            }
    with tarfile.open(archive) as source:
        return {
            Path(info.name).name: source.extractfile(info).read()  # type: ignore[union-attr]
            for info in source
            if info.isfile()
        }


def rows(manifest: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(manifest.decode(), newline="")))


@pytest.mark.parametrize("archive", EXPORTS, ids=lambda path: path.name)
def test_every_row_and_image_arrives_and_the_callback_names_the_batches(
    archive: Path, biospex: Biospex, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "10")
    files = source_files(archive)
    [manifest] = [name for name in files if name.endswith(".csv")]
    header, *wanted = rows(files.pop(manifest))
    stem = archive.name.removesuffix(".zip").removesuffix(".tar.gz")

    create_batches(biospex.request(archive))

    names = [f"{stem}-part{part}.zip" for part in (1, 2, 3)]
    assert biospex.callbacks() == [
        {
            "function": "BiospexBatchCreator",
            "status": "success",
            "downloadId": 512,
            "batchFiles": names,
        }
    ]
    assert biospex.batches() == names
    got_rows: list[list[str]] = []
    got_images: dict[str, bytes] = {}
    for name in names:
        content = biospex.batch(name)
        batch_header, *batch_rows = rows(content.pop("manifest.csv"))
        assert batch_header == header
        assert len(batch_rows) <= 10
        assert set(content) == {row[1] for row in batch_rows}
        got_rows += batch_rows
        got_images |= content
    assert got_rows == wanted
    assert got_images == files
    assert list(workspace.iterdir()) == []


def test_a_repeated_run_uploads_the_same_bytes_of_missing_batches_only(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "10")
    biospex.s3.put_bucket_versioning(
        Bucket=biospex.bucket, VersioningConfiguration={"Status": "Enabled"}
    )  # so that every upload leaves a trace
    request = biospex.request(EXPORTS[0])
    first, second, third = create_batches(request).batch_files

    def stored() -> bytes:
        found = biospex.s3.get_object(Bucket=biospex.bucket, Key=f"batch/{second}")
        assert found["ContentType"] == "application/zip"
        return found["Body"].read()

    before = stored()
    biospex.delete_batch(second)
    create_batches(request)
    assert stored() == before
    versions = biospex.s3.list_object_versions(Bucket=biospex.bucket, Prefix="batch/")["Versions"]
    uploads = sorted(version["Key"].removeprefix("batch/") for version in versions)
    assert uploads == sorted([first, second, second, third])
    assert biospex.statuses() == ["success", "success"]


def test_a_changed_export_replaces_the_batches_of_the_old_one(
    biospex: Biospex, tmp_path: Path
) -> None:
    archive = tmp_path / "41-2-x.zip"
    for image in (b"old image", b"new image"):
        with zipfile.ZipFile(archive, "w") as export:
            export.writestr("a.jpg", image)
            export.writestr("manifest.csv", "subjectId,imageName\na,a.jpg\n")
        create_batches(biospex.request(archive))
    assert biospex.batch("41-2-x-part1.zip")["a.jpg"] == b"new image"


def missing_image(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as export:
        export.writestr("a.jpg", b"image")
        export.writestr("manifest.csv", "imageName\na.jpg\nb.jpg\n")


def damaged_image(path: Path) -> None:
    damaged = bytearray(EXPORTS[0].read_bytes())
    damaged[5000] ^= 0xFF
    path.write_bytes(damaged)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (missing_image, "row 3 names 'b.jpg', which is not in the archive"),
        (damaged_image, "damaged"),
    ],
)
def test_a_bad_export_is_answered_and_nothing_is_uploaded(
    write: Callable[[Path], None],
    sentence: str,
    tmp_path: Path,
    biospex: Biospex,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "1")
    write(tmp_path / "e.zip")
    with pytest.raises(ExportError, match=sentence):
        create_batches(biospex.request(tmp_path / "e.zip"))
    [callback] = biospex.callbacks()
    assert set(callback) == {"function", "status", "downloadId", "error"}
    assert callback["function"] == "BiospexBatchCreator"
    assert callback["status"] == "failed"
    assert callback["downloadId"] == 512
    assert sentence in callback["error"]
    assert "\n" not in callback["error"]
    assert biospex.batches() == []
    assert list(workspace.iterdir()) == []


def test_a_wrong_request_is_answered_with_the_name_of_the_field(biospex: Biospex) -> None:
    with pytest.raises(ExportError, match="'file'"):
        create_batches(biospex.request(EXPORTS[0], file="a/b.zip"))
    assert "'file'" in biospex.callbacks()[0]["error"]


def test_a_request_without_an_address_fails_and_sends_nothing(biospex: Biospex) -> None:
    with pytest.raises(ExportError, match="'downloadId' must be a number or a short text"):
        create_batches(biospex.request(EXPORTS[0], downloadId=None))
    assert biospex.callbacks() == []


def test_a_wrong_setting_is_answered_with_the_variables_name(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "many")
    state: State[Any] = create_batches(biospex.request(EXPORTS[0]), return_state=True)
    assert state.is_failed()
    assert "BATCH_SIZE='many'" in biospex.callbacks()[0]["error"]


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


def test_an_artifact_that_cannot_be_made_fails_no_export(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Prefect's API is away for a moment")

    monkeypatch.setattr("flows.support.progress.update_progress_artifact", refuse)
    monkeypatch.setattr("flows.support.artifacts.create_table_artifact", refuse)
    monkeypatch.setattr("flows.support.artifacts.create_markdown_artifact", refuse)
    create_batches(biospex.request(EXPORTS[0]))
    assert biospex.statuses() == ["success"]


def test_both_lanes_make_batches_of_the_same_members_and_manifests(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "10")
    monkeypatch.setenv("VERIFY", "true")
    found = []
    for strategy in ("extract", "splice"):
        monkeypatch.setenv("SPLIT_STRATEGY", strategy)
        names = create_batches(biospex.request(EXPORTS[0])).batch_files
        found.append([biospex.batch(name) for name in names])
        for name in names:
            biospex.delete_batch(name)
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_the_splice_strategy_refuses_an_archive_that_needs_extraction(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLIT_STRATEGY", "splice")
    with pytest.raises(SetupError, match="SPLIT_STRATEGY is splice, but"):
        create_batches(biospex.request(EXPORTS[2]))
    assert biospex.statuses() == ["failed"]


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


def test_every_log_line_names_the_download_the_file_and_the_part(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "10")
    with caplog.at_level("INFO"):
        # The request may be the model as well.
        result = create_batches(Request.parse(biospex.request(EXPORTS[0], downloadId="d-7")))
    assert (result.download_id, len(result.batch_files)) == ("d-7", 3)
    lines = [vars(line) for line in caplog.records if line.name.startswith("prefect.")]
    assert {(line["download_id"], line["file"]) for line in lines} == {("d-7", EXPORTS[0].name)}
    of_batches = [line for line in lines if "zip and upload" in line.get("task_run_name", "")]
    assert len(of_batches) == 2 * 3  # that it was put, that it is finished
    assert {line["part"] for line in of_batches} == {1, 2, 3}
    assert all(f"batch {line['part']} of 3" in line["task_run_name"] for line in of_batches)


@pytest.mark.parametrize("lane", ["splice", "extract"])
def test_the_graph_shows_each_step_once_and_joins_notify_to_the_batches(
    lane: str, biospex: Biospex, prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "10")
    monkeypatch.setenv("SPLIT_STRATEGY", lane)
    state: State[Any] = create_batches(biospex.request(EXPORTS[0]), return_state=True)
    run_id = cast(UUID, state.state_details.flow_run_id)
    this_run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
    tasks = {task.name: task for task in prefect.read_task_runs(flow_run_filter=this_run)}
    steps = {"splice": 2, "extract": 4}[lane] + 3 + 1
    assert len(tasks) == steps
    batches = {str(task.id) for name, task in tasks.items() if " of 3, rows " in name}
    waits = tasks["notify: success"].task_inputs["wait_for"]
    assert {str(cast(TaskRunResult, each).id) for each in waits} == batches
    assert len(batches) == 3


def test_batches_can_be_made_by_the_workers_of_a_dask_cluster(
    biospex: Biospex, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client, LocalCluster, get_task_stream  # half a second, used here only

    monkeypatch.setenv("BATCH_SIZE", "10")
    monkeypatch.setenv("MAX_TMP_SIZE", "0")  # so that it is unpacked on EFS, which all share
    request = biospex.request(EXPORTS[0])
    create_batches(request)
    here = [biospex.batch(name) for name in biospex.batches()]
    for name in biospex.batches():
        biospex.delete_batch(name)

    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
        get_task_stream(client) as stream,
    ):
        monkeypatch.setenv("DASK_SCHEDULER", cluster.scheduler_address)
        create_batches(request)

    assert len(stream.data) == 3
    assert len({task["worker"] for task in stream.data}) == 2
    assert [biospex.batch(name) for name in biospex.batches()] == here
    assert biospex.statuses() == ["success"] * 2
    assert list(workspace.glob(f"{PREFIX}*")) == []  # Dask leaves a directory of its own


def test_incomplete_uploads_of_a_killed_run_are_aborted(biospex: Biospex) -> None:
    stem = EXPORTS[0].stem
    left = [f"batch/{stem}-part1.zip", f"batch/{stem}-part77.zip"]
    others = [f"batch/{stem}-parts-part1.zip", f"batch/{stem}-part1.zip.zip", "batch/x-part1.zip"]
    for key in (*left, *others):
        biospex.s3.create_multipart_upload(Bucket=biospex.bucket, Key=key)
    create_batches(biospex.request(EXPORTS[0]))
    assert sorted(biospex.incomplete_uploads()) == sorted(others)


def test_a_permanent_fault_ends_the_run_with_a_sentence(
    biospex: Biospex, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        state: State[Any] = create_batches(
            biospex.request(EXPORTS[0], exportPath=f"gone/{EXPORTS[0].name}"), return_state=True
        )
    assert state.is_failed()
    assert (state.name, state.message) == ("Export refused", biospex.callbacks()[0]["error"])
    assert "There is no export 'gone/" in str(state.message)
    assert isinstance(state.result(raise_on_failure=False), ExportError)
    errors = [line.getMessage() for line in caplog.records if line.levelname == "ERROR"]
    assert [line.partition(":")[0] for line in errors] == ["No batches", "What to do"]
    assert not any(line.exc_info for line in caplog.records if line.levelname != "DEBUG")


@pytest.mark.parametrize(
    ("changes", "name"), [({}, "Completed"), ({"totalSize": 1}, "Completed with warnings")]
)
def test_the_state_of_a_run_counts_rows_and_batches(
    changes: dict[str, Any],
    name: str,
    biospex: Biospex,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "10")
    state: State[Any] = create_batches(biospex.request(EXPORTS[0], **changes), return_state=True)
    assert state.is_completed()
    assert state.name == name
    assert re.fullmatch(r"25 rows in 3 batches, \d+\.\d kB", str(state.message))
    assert len(state.result().batch_files) == 3
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    numbers = json.loads(line)
    assert (numbers["outcome"], numbers["rows"], numbers["batches"]) == (name, 25, 3)
    assert numbers["batch_bytes"] > 100_000
    [metrics] = numbers["_aws"]["CloudWatchMetrics"]
    assert {metric["Name"] for metric in metrics["Metrics"]} <= set(numbers)


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

    monkeypatch.setattr("splitter.aws.sqs.check_callback_queue", checked_and_then_deleted)
    with caplog.at_level("INFO"):
        state: State[Any] = create_batches(
            biospex.request(EXPORTS[0], updatesQueueUrl=gone), return_state=True
        )
    assert state.is_failed()
    assert str(state.message).startswith("Batches were created, but BIOSPEX was not told: ")
    assert "Batches were created, but BIOSPEX was not told: " in caplog.text
    assert "What to do: " in caplog.text
    assert biospex.batches()


def test_a_temporary_fault_is_left_to_the_listener(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("nobody thought of it")

    monkeypatch.setattr("flows.create_batches.split", fail)
    with pytest.raises(ValueError, match="nobody"):
        create_batches(biospex.request(EXPORTS[0]))
    assert biospex.callbacks() == []


def test_a_run_by_hand_sends_no_callback(biospex: Biospex) -> None:
    assert create_batches(biospex.address(EXPORTS[0])).batch_files == [
        f"{EXPORTS[0].stem}-part1.zip"
    ]
    with pytest.raises(ExportError, match="write it like s3://"):
        create_batches("export/41.zip")
    assert biospex.callbacks() == []
