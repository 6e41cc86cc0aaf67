"""The flow of one export, against S3 and SQS over HTTP and a real Prefect server."""

import csv
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from distributed import Client, LocalCluster, get_task_stream
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
@pytest.mark.parametrize(("batch_size", "parts"), [(10, 3), (2000, 1)])
def test_every_row_cell_and_image_arrives_and_the_callback_names_the_batches(
    archive: Path,
    batch_size: int,
    parts: int,
    biospex: Biospex,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATCH_SIZE", str(batch_size))
    files = source_files(archive)
    [manifest] = [name for name in files if name.endswith(".csv")]
    header, *wanted = rows(files.pop(manifest))
    stem = archive.name.removesuffix(".zip").removesuffix(".tar.gz")

    create_batches(biospex.request(archive))

    names = [f"{stem}-part{part}.zip" for part in range(1, parts + 1)]
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
        assert len(batch_rows) <= batch_size
        assert set(content) == {row[1] for row in batch_rows}
        got_rows += batch_rows
        got_images |= content
    assert got_rows == wanted
    assert got_images == files
    assert list(workspace.iterdir()) == []


def test_the_request_may_be_the_model_and_the_result_is_returned(biospex: Biospex) -> None:
    result = create_batches(Request.parse(biospex.request(EXPORTS[0], downloadId="d-7")))
    assert result.download_id == "d-7"
    assert result.batch_files == [f"{EXPORTS[0].stem}-part1.zip"]
    assert biospex.callbacks()[0]["downloadId"] == "d-7"


def test_batches_are_zip_objects_and_the_same_from_run_to_run(biospex: Biospex) -> None:
    request = biospex.request(EXPORTS[0])
    bodies = []
    for _ in range(2):
        [name] = create_batches(request).batch_files
        stored = biospex.s3.get_object(Bucket=biospex.bucket, Key=f"batch/{name}")
        assert stored["ContentType"] == "application/zip"
        bodies.append(stored["Body"].read())
        biospex.delete_batch(name)
    assert bodies[0] == bodies[1]


def test_a_repeated_run_uploads_only_what_is_missing(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "10")
    biospex.s3.put_bucket_versioning(
        Bucket=biospex.bucket, VersioningConfiguration={"Status": "Enabled"}
    )  # so that every upload leaves a trace
    request = biospex.request(EXPORTS[0])
    first, second, third = create_batches(request).batch_files
    biospex.delete_batch(second)
    create_batches(request)
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


def export_of(path: Path, manifest: str, images: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as export:
        for name, image in images.items():
            export.writestr(name, image)
        export.writestr("manifest.csv", manifest)
    return path


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        ("imageName\na.jpg\nb.jpg\n", "line 3 names 'b.jpg', which is not in the archive"),
        ("imageName,x\na.jpg,1,2\n", "line 2 has 3 cells instead of 2"),
        ("imageName\n", "no rows"),
        ("subjectId\n1\n", "no column named 'imageName'"),
    ],
)
def test_a_bad_export_is_answered_with_a_sentence_and_nothing_is_uploaded(
    manifest: str,
    sentence: str,
    tmp_path: Path,
    biospex: Biospex,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "1")
    archive = export_of(tmp_path / "e.zip", manifest, {"a.jpg": b"image"})
    with pytest.raises(ExportError, match=sentence):
        create_batches(biospex.request(archive))
    [callback] = biospex.callbacks()
    assert set(callback) == {"function", "status", "downloadId", "error"}
    assert callback["function"] == "BiospexBatchCreator"
    assert callback["status"] == "failed"
    assert callback["downloadId"] == 512
    assert sentence in callback["error"]
    assert "\n" not in callback["error"]
    assert biospex.batches() == []
    assert list(workspace.iterdir()) == []


def test_a_damaged_archive_is_answered_and_leaves_nothing(
    tmp_path: Path, biospex: Biospex, workspace: Path
) -> None:
    damaged = bytearray(EXPORTS[0].read_bytes())
    damaged[5000] ^= 0xFF  # inside the first image
    archive = tmp_path / EXPORTS[0].name
    archive.write_bytes(damaged)
    with pytest.raises(ExportError):
        create_batches(biospex.request(archive))
    assert "damaged" in biospex.callbacks()[0]["error"]
    assert biospex.batches() == []
    assert list(workspace.iterdir()) == []


@pytest.mark.parametrize("file", ["a/b.zip", ""])
def test_a_request_that_cannot_be_carried_out_is_refused_with_the_fields_name(
    file: str, biospex: Biospex
) -> None:
    with pytest.raises(ExportError, match="'file'"):
        create_batches(biospex.request(EXPORTS[0], file=file))
    assert "'file'" in biospex.callbacks()[0]["error"]


def test_a_request_without_an_address_fails_and_sends_nothing(biospex: Biospex) -> None:
    with pytest.raises(ExportError, match="'downloadId' must be a number or a short text"):
        create_batches(biospex.request(EXPORTS[0], downloadId=None))
    assert biospex.callbacks() == []


def test_an_export_that_is_not_there_is_answered(biospex: Biospex) -> None:
    with pytest.raises(ExportError):
        create_batches(biospex.request(EXPORTS[0], exportPath=f"gone/{EXPORTS[0].name}"))
    assert "There is no export 'gone/" in biospex.callbacks()[0]["error"]


def test_a_wrong_setting_is_answered_with_the_variables_name(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "many")
    state: State[Any] = create_batches(biospex.request(EXPORTS[0]), return_state=True)
    assert state.is_failed()
    assert "BATCH_SIZE='many'" in biospex.callbacks()[0]["error"]


def test_an_operator_changes_the_workspace_in_the_ui_and_the_next_run_uses_it(
    biospex: Biospex, tmp_path: Path
) -> None:
    missing = tmp_path / "not-mounted"
    Workspace(efs_path=missing, max_tmp_size=0).save("biospex")
    try:
        with pytest.raises(Exception, match=r"EFS path of the block .*/biospex .*not-mounted does"):
            create_batches(biospex.request(EXPORTS[0]))
        assert not missing.exists()
        assert "tell the operator" in biospex.callbacks()[0]["error"]
    finally:
        Workspace.delete("biospex")


def test_what_is_only_looked_at_makes_no_export_fail(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Prefect's API is away for a moment")

    monkeypatch.setattr("flows.support.progress.update_progress_artifact", refuse)
    monkeypatch.setattr("flows.support.artifacts.create_table_artifact", refuse)
    monkeypatch.setattr("flows.support.artifacts.create_markdown_artifact", refuse)
    create_batches(biospex.request(EXPORTS[0]))
    assert biospex.statuses() == ["success"]


@pytest.mark.parametrize("archive", EXPORTS[:1], ids=lambda path: path.name)
def test_both_lanes_make_batches_of_the_same_members_and_manifests(
    archive: Path, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "10")
    monkeypatch.setenv("VERIFY", "true")
    found = []
    for strategy in ("extract", "splice"):
        monkeypatch.setenv("SPLIT_STRATEGY", strategy)
        names = create_batches(biospex.request(archive)).batch_files
        found.append([biospex.batch(name) for name in names])
        for name in names:
            biospex.delete_batch(name)
    assert found[0] == found[1]
    assert len(found[0]) == 3


@pytest.mark.parametrize("archive", EXPORTS[1:], ids=lambda path: path.name)
def test_a_splice_of_what_cannot_be_spliced_is_refused_and_auto_extracts_it(
    archive: Path, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLICE_MIN_SIZE", "0")
    create_batches(biospex.request(archive))
    monkeypatch.setenv("SPLIT_STRATEGY", "splice")
    with pytest.raises(SetupError, match="SPLIT_STRATEGY is splice, but"):
        create_batches(biospex.request(archive))
    assert biospex.statuses() == ["success", "failed"]


@pytest.mark.parametrize(
    ("variable", "patterns", "answers"),
    [("ALLOWED_BUCKETS", "biospex-*", 1), ("ALLOWED_QUEUES", "https://sqs.us-east-2.*", 0)],
)
def test_what_the_operator_does_not_allow_is_neither_read_nor_sent_to(
    variable: str, patterns: str, answers: int, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, patterns)
    with pytest.raises(ExportError, match="not allowed to use"):
        create_batches(biospex.request(EXPORTS[0]))
    assert biospex.statuses() == ["failed"] * answers
    assert biospex.batches() == []


def test_every_line_of_a_run_says_which_download_file_and_part_it_is_about(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "10")
    with caplog.at_level("INFO"):
        create_batches(biospex.request(EXPORTS[0]))
    lines = [vars(line) for line in caplog.records if line.name.startswith("prefect.")]
    assert {(line["download_id"], line["file"]) for line in lines} == {(512, EXPORTS[0].name)}
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


def test_uploads_that_a_killed_run_left_open_are_dropped_and_no_others(biospex: Biospex) -> None:
    stem = EXPORTS[0].stem
    left = [f"batch/{stem}-part1.zip", f"batch/{stem}-part77.zip"]
    others = [f"batch/{stem}-parts-part1.zip", f"batch/{stem}-part1.zip.zip", "batch/x-part1.zip"]
    for key in (*left, *others):
        biospex.s3.create_multipart_upload(Bucket=biospex.bucket, Key=key)
    create_batches(biospex.request(EXPORTS[0]))
    assert sorted(biospex.incomplete_uploads()) == sorted(others)


def test_a_fault_that_stays_ends_the_run_with_its_sentence_and_no_traceback(
    biospex: Biospex, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        state: State[Any] = create_batches(
            biospex.request(EXPORTS[0], exportPath=f"gone/{EXPORTS[0].name}"), return_state=True
        )
    assert state.is_failed()
    assert (state.name, state.message) == ("Export refused", biospex.callbacks()[0]["error"])
    assert isinstance(state.result(raise_on_failure=False), ExportError)
    errors = [line.getMessage() for line in caplog.records if line.levelname == "ERROR"]
    assert [line.partition(":")[0] for line in errors] == ["No batches", "What to do"]
    assert not any(line.exc_info for line in caplog.records if line.levelname != "DEBUG")


@pytest.mark.parametrize(
    ("changes", "name"), [({}, "Completed"), ({"totalSize": 1}, "Completed with warnings")]
)
def test_the_state_of_a_run_says_what_was_made(
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


def test_a_callback_queue_that_is_not_there_is_found_out_before_the_work(
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


def test_a_last_callback_that_fails_says_that_batches_are_made_and_what_to_do(
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


def test_a_fifo_queue_is_told_too(biospex: Biospex) -> None:
    queue = biospex.fifo_queue()
    create_batches(biospex.request(EXPORTS[0], updatesQueueUrl=queue))
    [message] = biospex.sqs.receive_message(QueueUrl=queue)["Messages"]
    assert '"status": "success"' in message["Body"]


def test_a_fault_that_may_pass_is_left_to_the_listener(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("nobody thought of it")

    monkeypatch.setattr("flows.create_batches.split", fail)
    with pytest.raises(ValueError, match="nobody"):
        create_batches(biospex.request(EXPORTS[0]))
    assert biospex.callbacks() == []


def test_a_run_by_hand_tells_nobody(biospex: Biospex) -> None:
    assert create_batches(biospex.address(EXPORTS[0])).batch_files == [
        f"{EXPORTS[0].stem}-part1.zip"
    ]
    with pytest.raises(ExportError, match="write it like s3://"):
        create_batches("export/41.zip")
    assert biospex.callbacks() == []
