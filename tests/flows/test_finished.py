"""Finished runs: batches, callback, state, log, graph, plan and run page.

Each run is made once and looked at from every side.
"""

import csv
import io
import json
import logging
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import requests
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, TaskRun, TaskRunResult
from prefect.deployments.runner import RunnerDeployment
from prefect.flow_engine import run_flow

from flows.create_batches import create_batches
from splitter.aws.s3 import Bucket
from splitter.batches.lanes import Export
from splitter.batches.plan import plan
from splitter.messages import Request
from splitter.settings import Settings
from splitter.workspace import PREFIX
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex
from tests.helpers.pages import page_of, this_run
from tests.helpers.processes import eventually

RUNS: dict[str, tuple[Path, dict[str, str]]] = {
    "splice": (EXPORTS[0], {"SPLIT_STRATEGY": "splice", "VERIFY": "true"}),
    "extract": (EXPORTS[0], {"SPLIT_STRATEGY": "extract"}),
    "by hand": (EXPORTS[1], {"PRESIGNED_LINKS": "false"}),
    "wrong size": (EXPORTS[2], {"AWS_SESSION_TOKEN": "of a role"}),
}
"""The archive and the environment of each run; the batch size is 10. The last is a deployment's."""


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        callbacks: those that BIOSPEX got.
        batches: the members of each batch, by the batch's name.
        plan: the lines of ``cli.submit --plan``.
        printed: the standard output.
        lines: the log records of Prefect's loggers.
        left: the files left in the workspace.
    """

    biospex: Biospex
    state: State[Any]
    callbacks: list[dict[str, Any]]
    batches: dict[str, dict[str, bytes]]
    plan: str
    printed: str
    lines: list[dict[str, Any]]
    left: list[Path]


Runs = Callable[[str], Finished]


@pytest.fixture(scope="module")
def finished(prefect_api: object, aws: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Makes a run of ``RUNS``, once."""

    @cache
    def run(name: str) -> Finished:
        archive, environment = RUNS[name]
        biospex = Biospex.new()
        workspace = tmp_path_factory.mktemp("workspace")
        request = biospex.request(archive)
        match name:
            case "extract":
                del request["totalSize"]
                request = Request.parse({**request, "downloadId": "d-7"})
            case "by hand":
                request = biospex.address(archive)
            case "wrong size":
                request["totalSize"] = 1
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, logged() as lines:
            for variable, value in environment.items():
                patch.setenv(variable, value)
            patch.setenv("BATCH_SIZE", "10")
            patch.setenv("EFS_PATH", str(workspace))
            patch.setenv("TMPDIR", str(workspace))
            patch.setattr("tempfile.tempdir", None)
            # A busy machine is slow to draw thumbnails.
            patch.setattr("flows.run_page.pictures.SECONDS", 120)
            patch.setattr("splitter.batches.contact_sheet.SECONDS", 120)
            planned = plan_of(request, biospex)
            assert biospex.batches() == []
            with redirect_stdout(printed):
                start = started_from_the_form if name == "wrong size" else started
                state = start(request)
            left = list(workspace.iterdir())
        return Finished(
            biospex,
            state,
            biospex.callbacks(),
            {file: biospex.batch(file) for file in biospex.batches()},
            planned,
            printed.getvalue(),
            [vars(line) for line in lines if line.name.startswith("prefect.")],
            left,
        )

    return run


def started(request: Any) -> State[Any]:
    state: State[Any] = create_batches(request, return_state=True)
    return state


def started_from_the_form(request: Any) -> State[Any]:
    """Run the flow as a run of a deployment, which has no tags of its own."""
    form = create_batches.to_deployment(f"form-{uuid4()}", enforce_parameter_schema=False)
    deployment = cast(UUID, cast(RunnerDeployment, form).apply())
    parameters = {"request": request}
    with get_client(sync_client=True) as prefect:
        run = prefect.create_flow_run_from_deployment(deployment, parameters=parameters)
    state: Any = run_flow(create_batches, run, parameters, return_type="state")
    return cast(State[Any], state)


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """The log records of the block from level INFO."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield records
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def plan_of(message: Any, biospex: Biospex) -> str:
    request = Request.by_hand(message) if isinstance(message, str) else Request.parse(message)
    bucket = Bucket(biospex.s3, biospex.bucket)
    return "\n".join(plan(Export(request, lambda _: bucket), Settings.load()))


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


@pytest.mark.parametrize("name", RUNS)
def test_every_row_and_image_arrives(name: str, finished: Runs) -> None:
    files = source_files(RUNS[name][0])
    [manifest] = [file for file in files if file.endswith(".csv")]
    header, *wanted = rows(files.pop(manifest))
    got_rows: list[list[str]] = []
    got_images: dict[str, bytes] = {}
    for members in finished(name).batches.values():
        images = dict(members)
        batch_header, *batch_rows = rows(images.pop("manifest.csv"))
        assert batch_header == header
        assert len(batch_rows) <= 10
        assert set(images) == {row[1] for row in batch_rows}
        got_rows += batch_rows
        got_images |= images
    assert got_rows == wanted
    assert got_images == files
    assert finished(name).left == []


@pytest.mark.parametrize("name", RUNS)
def test_the_callback_names_the_batches_and_a_run_by_hand_sends_none(
    name: str, finished: Runs
) -> None:
    run = finished(name)
    stem = RUNS[name][0].name.removesuffix(".zip").removesuffix(".tar.gz")
    names = [f"{stem}-part{part}.zip" for part in (1, 2, 3)]
    assert list(run.batches) == names
    assert run.state.result().batch_files == names
    callback = {
        "function": "BiospexBatchCreator",
        "status": "success",
        "downloadId": "d-7" if name == "extract" else 512,
        "batchFiles": names,
    }
    assert run.callbacks == ([] if name == "by hand" else [callback])


def test_both_lanes_make_batches_of_the_same_members(finished: Runs) -> None:
    assert finished("splice").batches == finished("extract").batches


@pytest.mark.parametrize(
    ("name", "state"), [("splice", "Completed"), ("wrong size", "Completed with warnings")]
)
def test_the_state_and_the_last_line_count_rows_and_batches(
    name: str, state: str, finished: Runs
) -> None:
    run = finished(name)
    assert run.state.is_completed()
    assert run.state.name == state
    assert re.fullmatch(r"25 rows in 3 batches, \d+\.\d kB", str(run.state.message))
    [line] = [line for line in run.printed.splitlines() if line.startswith("{")]
    numbers = json.loads(line)
    assert (numbers["outcome"], numbers["rows"], numbers["batches"]) == (state, 25, 3)
    assert numbers["batch_bytes"] > 100_000


def test_every_log_line_names_the_download_the_file_and_the_part(finished: Runs) -> None:
    lines = finished("extract").lines
    assert {(line["download_id"], line["file"]) for line in lines} == {("d-7", EXPORTS[0].name)}
    of_batches = [line for line in lines if "zip and upload" in line.get("task_run_name", "")]
    assert len(of_batches) == 2 * 3  # that it was put, that it is finished
    assert {line["part"] for line in of_batches} == {1, 2, 3}
    assert all(f"batch {line['part']} of 3" in line["task_run_name"] for line in of_batches)


@pytest.mark.parametrize(("lane", "steps"), [("splice", 6), ("extract", 8)])
def test_the_graph_shows_each_step_once_and_joins_notify_to_the_batches(
    lane: str, steps: int, finished: Runs, prefect: SyncPrefectClient
) -> None:
    def read() -> dict[str, TaskRun] | None:
        found = prefect.read_task_runs(flow_run_filter=this_run(finished(lane).state))
        return {task.name: task for task in found} if len(found) >= steps else None

    tasks = eventually(read)
    assert len(tasks) == steps
    batches = {str(task.id) for name, task in tasks.items() if " of 3, rows " in name}
    waits = tasks["notify: success"].task_inputs["wait_for"]
    assert {str(cast(TaskRunResult, each).id) for each in waits} == batches
    assert len(batches) == 3


@pytest.mark.parametrize("lane", ["splice", "extract"])
def test_the_plan_matches_the_batches(lane: str, finished: Runs) -> None:
    run = finished(lane)
    made = run.biospex.s3.list_objects_v2(Bucket=run.biospex.bucket, Prefix="batch/")["Contents"]
    lines = re.findall(r"^ +(\d+) +(\d+-\d+) +(\d+) +([\d,]+) +\d+ +\d+$", run.plan, re.MULTILINE)
    assert [(part, rows, images) for part, rows, images, _ in lines] == [
        ("1", "1-10", "10"),
        ("2", "11-20", "10"),
        ("3", "21-25", "5"),
    ]
    assert [int(size.replace(",", "")) for *_, size in lines] == [entry["Size"] for entry in made]
    assert f"{sum(entry['Size'] for entry in made):,}" in run.plan


@pytest.mark.parametrize("lane", ["splice", "extract"])
def test_the_page_shows_the_rows_the_place_and_pictures_of_a_batch(
    lane: str, finished: Runs, prefect: SyncPrefectClient
) -> None:
    page = page_of(prefect, finished(lane).state)
    summary = str(page["summary"].data)
    assert "25 rows in 3 batches" in summary
    assert "No warnings." in summary
    [*_, last] = json.loads(str(page["batches"].data))
    assert last["rows"] == "21-25"
    assert last["size"].endswith(" kB")
    assert last["bytes"] > 1000
    [link] = re.findall(r"part3\.zip\]\(<(http[^>]+)>\): rows 21 to 25, ", summary)
    assert requests.get(link, timeout=60).content.startswith(b"PK\3\4")
    assert "](data:image/jpeg;base64," in str(page["images"].data)
    assert len(str(page["images"].data)) <= 40_000


@pytest.mark.parametrize("name", ["by hand", "wrong size"])
def test_the_console_is_linked_where_a_signed_link_would_not_do(
    name: str, finished: Runs, prefect: SyncPrefectClient
) -> None:
    summary = str(page_of(prefect, finished(name).state)["summary"].data)
    assert "https://us-east-2.console.aws.amazon.com/s3/object/bucket-" in summary
    assert "Signature" not in summary


def test_a_wrong_size_in_the_request_is_a_warning(
    finished: Runs, prefect: SyncPrefectClient
) -> None:
    summary = str(page_of(prefect, finished("wrong size").state)["summary"].data)
    assert "The request says that the archive has 1 bytes" in summary


def test_a_run_from_the_form_is_found_by_its_download(
    finished: Runs, prefect: SyncPrefectClient
) -> None:
    [run] = prefect.read_flow_runs(flow_run_filter=this_run(finished("wrong size").state))
    assert "download-512" in run.tags


def test_workers_of_a_dask_cluster_can_make_the_batches(
    finished: Runs, biospex: Biospex, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client, LocalCluster, get_task_stream  # half a second, used here only

    expected = finished("extract").batches
    monkeypatch.setenv("BATCH_SIZE", "10")
    monkeypatch.setenv("MAX_TMP_SIZE", "0")  # so that it is unpacked on EFS, which all share
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
        get_task_stream(client) as stream,
    ):
        monkeypatch.setenv("DASK_SCHEDULER", cluster.scheduler_address)
        create_batches(biospex.request(EXPORTS[0]))

    assert len(stream.data) == 3
    made = {name: biospex.batch(name) for name in biospex.batches()}
    assert made == expected
    assert biospex.statuses() == ["success"]
    assert list(workspace.glob(f"{PREFIX}*")) == []  # Dask leaves a directory of its own
