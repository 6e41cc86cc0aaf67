"""Damaged tables are refused or warned about, in both lanes: each input of cases/tables."""

import json
import re
from pathlib import Path

import pytest

from flows.support.markdown import plain
from splitter import zooniverse
from splitter.archives.extract import extract
from splitter.archives.zip_index import ZipIndex
from splitter.errors import ExportError, explain
from splitter.manifest.partition import partition_export
from tests.conftest import FIXTURES

FOLDER = FIXTURES / "cases" / "tables"
CASES: dict[str, dict[str, str]] = json.loads((FOLDER / "index.json").read_text())


def outcome_of(archive: Path, lane: str, workspace: Path) -> tuple[str, str]:
    """``refused`` and the callback's sentence, or ``warned`` or ``success`` and the summary's."""
    with archive.open("rb") as source:
        try:
            files = (
                ZipIndex.of_file(source)
                if lane == "splice"
                else extract(archive, workspace / "images")
            )
            parts = partition_export(
                files.members, files.read, "imageName", 5, unusable=files.unusable
            )
            parts = zooniverse.inspect(parts, files)
        except ExportError as error:
            return "refused", explain(error)
    warnings = [*parts.warnings, *parts.zooniverse]
    return "warned" if warnings else "success", "\n".join(map(plain, warnings))


@pytest.mark.parametrize("lane", ["extract", "splice"])
@pytest.mark.parametrize("case", CASES)
def test_a_damaged_table_is_no_quiet_success(case: str, lane: str, tmp_path: Path) -> None:
    kind, _, wanted = CASES[case]["expect"].partition(":")
    end, text = outcome_of(FOLDER / CASES[case]["file"], lane, tmp_path)
    assert re.search(wanted, text)
    ends = {"refuse": ["refused"], "warn": ["warned"]}
    assert end in ends.get(kind, ["refused", "warned"])
