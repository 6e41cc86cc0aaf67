"""Damaged tables are refused or warned about, in both lanes.

``cases/tables/index.json`` has the outcome of each ZIP. ``cases/tables/by-code`` has a manifest for
each sentence: its name is the sentence's code, with ``--`` and a variant. A ``.names.json`` beside
it has the names of the archive's files, by default ``a.jpg``, ``b.jpg`` and ``c.jpg`` beside
``manifest.csv``. The tables called ``sound`` give no warning.
"""

import json
import re
from pathlib import Path

import pytest

from cli.sentences import page
from flows.run_page.markdown import plain
from splitter import zooniverse
from splitter.archives.extract import extract
from splitter.errors import ExportError, explain
from splitter.manifest import Partition, partition_export
from splitter.sentences import CATALOGUE, Problem
from tests.conftest import FIXTURES
from tests.helpers.archives import index_of_file, zip_of

FOLDER = FIXTURES / "cases" / "tables"
CASES: dict[str, dict[str, str]] = json.loads((FOLDER / "index.json").read_text())
BY_CODE = sorted({path.name.partition(".names")[0].removesuffix(".csv")
                  for path in (FOLDER / "by-code").iterdir()})  # fmt: skip
LANES = ("extract", "splice")

JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0" + bytes(300) + b"\xff\xd9"

ELSEWHERE = {
    "manifest.too-many-cells": "test_partition.py",
    "manifest.too-many-columns": "test_partition.py",
    "manifest.unlisted-files": "tests/flows",
    "manifest.unusable": "tests/archives",
}
"""Sentences whose input is no manifest."""


def partition(archive: Path, lane: str, workspace: Path) -> Partition:
    """An archive's batches, after the check for Zooniverse."""
    with archive.open("rb") as source:
        is_splice = lane == "splice"
        files = index_of_file(source) if is_splice else extract(archive, workspace / "images")
        parts = partition_export(files.members, files.read, "imageName", 5, unusable=files.unusable)
        return zooniverse.inspect(parts, files)


def outcome_of(archive: Path, lane: str, workspace: Path) -> tuple[str, str]:
    """``refused`` and the callback's sentence, or ``warned`` or ``success`` and the summary's."""
    try:
        parts = partition(archive, lane, workspace)
    except ExportError as error:
        return "refused", explain(error)
    warnings = [*parts.warnings, *parts.zooniverse]
    return "warned" if warnings else "success", "\n".join(map(plain, warnings))


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("case", CASES)
def test_a_damaged_table_is_no_quiet_success(case: str, lane: str, tmp_path: Path) -> None:
    kind, _, wanted = CASES[case]["expect"].partition(":")
    end, text = outcome_of(FOLDER / CASES[case]["file"], lane, tmp_path)
    assert re.search(wanted, text)
    ends = {"refuse": ["refused"], "warn": ["warned"]}
    assert end in ends.get(kind, ["refused", "warned"])


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", BY_CODE)
def test_a_table_gives_the_sentence_that_it_is_called_by(
    name: str, lane: str, tmp_path: Path
) -> None:
    names = FOLDER / "by-code" / f"{name}.names.json"
    table = FOLDER / "by-code" / f"{name}.csv"
    listed = json.loads(names.read_text()) if names.exists() else ["a.jpg", "b.jpg", "c.jpg"]
    files = dict.fromkeys(listed, JPEG)
    if table.exists():
        place = next((name for name in listed if name.endswith("manifest.csv")), "manifest.csv")
        files[place] = table.read_bytes()
    archive = tmp_path / "archive.zip"
    archive.write_bytes(zip_of(files))
    try:
        parts = partition(archive, lane, tmp_path)
    except ExportError as error:
        assert error.problem.code == name.partition("--")[0], str(error)
        return
    codes = [problem.code for problem in parts.warnings if isinstance(problem, Problem)]
    assert codes == ([] if name.startswith("sound") else [name.partition("--")[0]])


def test_every_sentence_about_a_manifest_has_a_table() -> None:
    page()  # imports every room
    codes = {code for code in CATALOGUE if code.startswith("manifest.")}
    tested = {name.partition("--")[0] for name in BY_CODE} - {"sound"}
    assert codes - tested == set(ELSEWHERE)
