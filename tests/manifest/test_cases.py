"""Exports whose manifest a person changed, or whose images Zooniverse refuses, in both lanes."""

import csv
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.client.schemas.objects import State

from cli.submit import main
from flows.create_batches import create_batches
from flows.support.markdown import plain
from tests.conftest import FIXTURES
from tests.helpers.biospex import Biospex

pytestmark = pytest.mark.usefixtures("prefect_api", "aws", "workspace")

FOLDER = FIXTURES / "cases" / "manifests"
CASES: dict[str, dict[str, str]] = json.loads((FOLDER / "index.json").read_text())
LANES = ("auto", "extract")


def summary_of(state: State[Any]) -> str:
    assert state.state_details.flow_run_id
    run = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
    summary = ArtifactFilter(key=ArtifactFilterKey(any_=["summary"]), flow_run_id=run)
    with get_client(sync_client=True) as prefect:
        [found] = prefect.read_artifacts(artifact_filter=summary)
    return str(found.data)


def rows_and_images(biospex: Biospex, files: list[str]) -> tuple[int, dict[str, bytes]]:
    rows = 0
    images: dict[str, bytes] = {}
    for file in files:
        batch = biospex.batch(file)
        text = io.StringIO(batch.pop("manifest.csv").decode(), newline="")
        rows += len(list(csv.DictReader(text)))
        images |= batch
    return rows, images


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("case", CASES)
def test_a_changed_export_is_read_rightly_or_refused_with_the_cause(
    case: str, lane: str, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "5")
    monkeypatch.setenv("SPLICE_MIN_SIZE", "0")
    monkeypatch.setenv("SPLIT_STRATEGY", lane)
    path = FOLDER / CASES[case]["file"]
    kind, _, wanted = CASES[case]["expect"].partition(":")

    state: State[Any] = create_batches(biospex.request(path), return_state=True)

    [callback] = biospex.callbacks()
    if kind == "refuse" or (kind == "either" and callback["status"] == "failed"):
        assert callback["status"] == "failed"
        assert re.search(wanted, callback["error"])
        return
    assert callback["status"] == "success"
    rows, images = rows_and_images(biospex, callback["batchFiles"])
    with zipfile.ZipFile(path) as source:
        files = {name: source.read(name) for name in source.namelist() if ".jpg" in name}
    assert images.items() <= files.items()
    assert rows >= len(images)
    summary = summary_of(state)
    if kind == "rows":
        assert rows == int(wanted)
        assert "empty cells" in summary
    if kind in ("warn", "either"):
        assert re.search(wanted, summary)
        assert state.name == "Completed with warnings"


def test_a_plan_says_of_zooniverse_what_the_summary_says(
    biospex: Biospex, capsys: pytest.CaptureFixture[str]
) -> None:
    path = FOLDER / CASES["85-jpg-url-in-references"]["file"]
    state: State[Any] = create_batches(biospex.request(path), return_state=True)
    section = summary_of(state).partition("### Zooniverse\n\n")[2].partition("\n\n")[0]
    said = [line.removeprefix("- ") for line in section.splitlines()]
    assert "the column 'references'" in "".join(said)
    assert main([f"s3://{biospex.bucket}/export/{path.name}", "--plan"]) == 0
    printed = capsys.readouterr().out
    assert list(map(plain, printed.partition("Zooniverse:\n")[2].splitlines())) == said


def test_the_fixtures_are_all_there() -> None:
    assert {Path(case["file"]).name for case in CASES.values()} == {
        path.name for path in FOLDER.glob("*.zip")
    }
