"""Archives as other people's programs write them, and odd ones, in both lanes.

``index.json`` of each corpus in ``fixtures/cases`` has the origin and the result of
each: the same batches (``same``), a refusal whose sentence matches (``refuse:``), or the one or the
other.
"""

import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from splitter.aws.s3 import Bucket
from splitter.batches.lanes import Extract, Splice
from splitter.errors import ExportError, explain
from splitter.manifest import MANIFEST as MANIFEST_NAME
from tests.helpers.archives import zip_of
from tests.helpers.biospex import Biospex
from tests.helpers.other_programs import UTF_8, accepted
from tests.helpers.split import split

FIXTURES = Path(__file__).parent.parent / "fixtures" / "cases"
INDEXES = {
    corpus: json.loads((FIXTURES / corpus / "index.json").read_text())
    for corpus in ("archives", "corpora")
}
CASES = [(corpus, name) for corpus, index in INDEXES.items() for name in index if name != "_export"]


@pytest.mark.parametrize("strategy", ["auto", "extract"])
@pytest.mark.parametrize(("corpus", "name"), CASES)
def test_an_archive_comes_to_its_batches_or_to_the_true_cause(
    corpus: str, name: str, strategy: str, bucket: Bucket, biospex: Biospex, tmp_path: Path
) -> None:
    case = INDEXES[corpus]["_export"] | INDEXES[corpus][name]
    path = FIXTURES / corpus / case["file"]
    biospex.s3.upload_file(str(path), bucket.name, f"export/{path.name}")
    wanted, _, pattern = case["expect"].partition(":")
    try:
        lane, _, batches = split(bucket, path, strategy, tmp_path)
    except ExportError as error:
        assert wanted in ("refuse", "either"), explain(error)
        assert re.search(pattern, explain(error)), explain(error)
        return
    assert wanted in ("same", "either")
    check(batches, case["rows"], case["images"])
    if isinstance(lane, Splice):  # its batches have bytes of the archive beside the images
        others_accept(batches, tmp_path)


SCRIPTS = ["Größe ½.jpg", "Ñandú.jpg", "标本.jpg", "Гербарий.jpg", "🦋.jpg", "a.jpg"]
MANIFEST = "".join(f"{line}\n" for line in ["imageName", *SCRIPTS]).encode()
WRITERS = {
    "7z": ["7z", "a", "-tzip"],
    "bsdtar": ["bsdtar", "-acf"],
    "java": ["jar", "cMf"],
    "python": [sys.executable, "-m", "zipfile", "-c"],
}


@pytest.mark.parametrize("writer", WRITERS)
def test_names_of_any_script_that_are_marked_as_utf_8_are_spliced(
    writer: str, bucket: Bucket, biospex: Biospex, tmp_path: Path
) -> None:
    program, *options = WRITERS[writer]
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    source = tmp_path / "source"
    source.mkdir()
    for name in SCRIPTS:
        (source / name).write_bytes(name.encode() * 50)
    (source / MANIFEST_NAME).write_bytes(MANIFEST)
    path = tmp_path / "export.zip"
    subprocess.run(
        [program, *options, str(path), *SCRIPTS, MANIFEST_NAME],
        cwd=source,
        env=UTF_8,
        check=True,
        capture_output=True,
    )
    biospex.s3.upload_file(str(path), bucket.name, f"export/{path.name}")
    lane, _, batches = split(bucket, path, "auto", tmp_path)
    assert isinstance(lane, Splice), lane.reason
    images = {name: hashlib.sha256(name.encode() * 50).hexdigest() for name in SCRIPTS}
    check(batches, [[name] for name in SCRIPTS], images)
    others_accept(batches, tmp_path)


def test_an_archive_whose_manifest_spells_names_otherwise_is_extracted(
    bucket: Bucket, biospex: Biospex, tmp_path: Path
) -> None:
    path = tmp_path / "export.zip"
    rows = "imageName\nKu\u0308ste.jpg\n".encode()
    path.write_bytes(zip_of({"K\u00fcste.jpg": b"image", MANIFEST_NAME: rows}))
    biospex.s3.upload_file(str(path), bucket.name, f"export/{path.name}")
    lane, _, [batch] = split(bucket, path, "auto", tmp_path)
    assert isinstance(lane, Extract)
    assert "its manifest spells 'K\u00fcste.jpg' in another way" in lane.reason.text
    images = {"Ku\u0308ste.jpg": hashlib.sha256(b"image").hexdigest()}
    check([batch], [["Ku\u0308ste.jpg"]], images)


def check(batches: list[bytes], rows: Any, images: dict[str, str]) -> None:
    """Check that Python reads the rows and images of the batches."""
    found_rows: list[list[str]] = []
    found_images: dict[str, str] = {}
    for data in batches:
        with zipfile.ZipFile(io.BytesIO(data)) as made:
            assert made.testzip() is None
            assert len(made.namelist()) == len(set(made.namelist()))
            text = made.read(MANIFEST_NAME).decode()
            found_rows += list(csv.reader(io.StringIO(text, newline="")))[1:]
            found_images |= {
                name: hashlib.sha256(made.read(name)).hexdigest()
                for name in made.namelist()
                if name != MANIFEST_NAME
            }
    assert found_rows == rows
    assert found_images == images


def others_accept(batches: list[bytes], directory: Path) -> None:
    """Check that every other installed program reads the batches."""
    for number, data in enumerate(batches):
        path = directory / f"part{number}.zip"
        path.write_bytes(data)
        assert set(accepted(path)) >= {"python"}
