"""Exports whose manifest a person changed, or whose images Zooniverse refuses, in both lanes."""

import csv
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State

from cli.submit import main
from flows.create_batches import create_batches
from flows.run_page.markdown import plain
from splitter.aws.s3 import Bucket
from splitter.errors import ExportError, explain
from tests.conftest import FIXTURES
from tests.helpers.biospex import Biospex
from tests.helpers.pages import page_of
from tests.helpers.split import split

FOLDER = FIXTURES / "cases" / "manifests"
CASES: dict[str, dict[str, str]] = json.loads((FOLDER / "index.json").read_text())
LANES = ("auto", "extract")


def rows_and_images(batches: list[bytes]) -> tuple[int, dict[str, bytes]]:
    rows = 0
    images: dict[str, bytes] = {}
    for data in batches:
        with zipfile.ZipFile(io.BytesIO(data)) as batch:
            images |= {name: batch.read(name) for name in batch.namelist()}
        text = io.StringIO(images.pop("manifest.csv").decode(), newline="")
        rows += len(list(csv.DictReader(text)))
    return rows, images


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("case", CASES)
def test_a_changed_export_is_read_rightly_or_refused_with_the_cause(
    case: str, lane: str, biospex: Biospex, bucket: Bucket, tmp_path: Path
) -> None:
    path = FOLDER / CASES[case]["file"]
    biospex.request(path)
    kind, _, wanted = CASES[case]["expect"].partition(":")
    try:
        _, parts, batches = split(bucket, path, lane, tmp_path)
    except ExportError as error:
        assert kind in ("refuse", "either")
        assert re.search(wanted, explain(error))
        return
    assert kind != "refuse"
    rows, images = rows_and_images(batches)
    with zipfile.ZipFile(path) as source:
        files = {name: source.read(name) for name in source.namelist() if ".jpg" in name}
    assert images.items() <= files.items()
    assert rows >= len(images)
    warnings = "\n".join(map(str, (*parts.warnings, *parts.zooniverse)))
    if kind == "rows":
        assert rows == int(wanted)
        assert "empty cells" in warnings
    if kind in ("warn", "either"):
        assert re.search(wanted, warnings)


@pytest.mark.usefixtures("prefect_api", "workspace")
def test_a_plan_and_the_summary_have_the_same_zooniverse_section(
    biospex: Biospex, prefect: SyncPrefectClient, capsys: pytest.CaptureFixture[str]
) -> None:
    path = FOLDER / CASES["85-jpg-url-in-references"]["file"]
    state: State[Any] = create_batches(biospex.request(path), return_state=True)
    assert state.name == "Completed with warnings"
    summary = str(page_of(prefect, state)["summary"].data)
    section = summary.partition("### Zooniverse\n\n")[2].partition("\n\n")[0]
    lines = [line.removeprefix("- ") for line in section.splitlines()]
    assert "column 'references'" in "".join(lines)
    assert main([biospex.address(path), "--plan"]) == 0
    printed = capsys.readouterr().out
    assert list(map(plain, printed.partition("Zooniverse:\n")[2].splitlines())) == lines


def test_the_fixtures_are_all_there() -> None:
    assert {Path(case["file"]).name for case in CASES.values()} == {
        path.name for path in FOLDER.glob("*.zip")
    }
