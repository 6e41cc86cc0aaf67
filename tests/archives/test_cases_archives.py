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

from splitter.archives import extract as archive
from splitter.aws.s3 import Bucket
from splitter.batches import splice as splicing
from splitter.batches.assembly import PartPool, assemble
from splitter.batches.lanes import Export, Extract, Lane, Splice, choose_lane
from splitter.batches.zip import BatchZip
from splitter.errors import ExportError, explain
from splitter.manifest import MANIFEST as MANIFEST_NAME
from splitter.manifest import partition as manifest
from splitter.manifest.partition import Partition
from splitter.messages import Request
from splitter.settings import Settings
from tests.helpers.archives import zip_of
from tests.helpers.biospex import Biospex
from tests.helpers.other_programs import UTF_8, accepted

FIXTURES = Path(__file__).parent.parent / "fixtures" / "cases"
INDEXES = {
    corpus: json.loads((FIXTURES / corpus / "index.json").read_text())
    for corpus in ("archives", "corpora")
}
CASES = [(corpus, name) for corpus, index in INDEXES.items() for name in index if name != "_export"]


class Split:
    """One archive, split at the level of the plain functions, in S3 and on disk."""

    def __init__(self, bucket: Bucket, path: Path, strategy: Any, directory: Path) -> None:
        self.settings = Settings(batch_size=5, split_strategy=strategy, splice_min_size=0)
        key = f"export/{path.name}"
        request = Request.model_validate(
            {
                "downloadId": 1,
                "file": path.name,
                "exportPath": key,
                "totalSize": path.stat().st_size,
                "s3Bucket": bucket.name,
                "updatesQueueUrl": "https://sqs.us-east-2.amazonaws.com/000000000000/updates",
            }
        )
        self.bucket, self.directory = bucket, directory
        self.export = Export(
            request, bucket.archive(key), self.settings.limits, lambda _: bucket, bucket
        )

    def run(self) -> tuple[Lane, Partition, list[bytes]]:
        lane = choose_lane(self.export, self.settings)
        if isinstance(lane, Splice):
            return lane, lane.parts, self.splice(lane, lane.parts)
        path = self.directory / "archive"
        self.bucket.download(
            self.export.request.export_path, self.export.source, path, lambda _: None
        )
        contents = archive.extract(path, self.directory / "store", limits=self.export.limits)
        parts = self.partition(contents)
        images = {name: contents.members[file] for name, file in parts.images.items()}
        zips = [
            BatchZip(batch, images, contents.store, contents.members[parts.manifest].modified)
            for batch in parts.batches
        ]
        return lane, parts, [bytes(made.read(0, made.size)) for made in zips]

    def splice(self, lane: Splice, parts: Partition) -> list[bytes]:
        images = {name: lane.index.members[file] for name, file in parts.images.items()}
        modified = lane.index.members[parts.manifest].info.date_time
        made = []
        with PartPool(4) as pool:
            for batch in parts.batches:
                plan = splicing.plan_batch(batch, images, modified)
                key = self.export.request.batch_key(batch.part)
                [pieces] = splicing.parts(
                    [plan], self.bucket, self.export.request.export_path, self.export.source
                )
                assemble(self.bucket, key, pieces, {}, pool, lambda _: None)
                splicing.verify(self.bucket, key, batch)
                found = self.bucket.archive(key)
                made.append(bytes(self.bucket.read(key, found.etag, 0, found.size)))
        return made

    def partition(self, files: Any) -> Partition:
        return manifest.partition_export(
            files.members,
            files.read,
            self.settings.image_column,
            self.settings.batch_size,
            self.settings.max_cells,
            files.unusable,
        )


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
        _, _, batches = Split(bucket, path, strategy, tmp_path).run()
    except ExportError as error:
        assert wanted in ("refuse", "either"), explain(error)
        assert re.search(pattern, explain(error)), explain(error)
        return
    assert wanted in ("same", "either")
    check(batches, case["rows"], case["images"], tmp_path)


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
    lane, _, batches = Split(bucket, path, "auto", tmp_path).run()
    assert isinstance(lane, Splice), lane.reason
    images = {name: hashlib.sha256(name.encode() * 50).hexdigest() for name in SCRIPTS}
    check(batches, [[name] for name in SCRIPTS], images, tmp_path)


def test_a_manifest_that_spells_names_otherwise_than_the_archive_is_extracted(
    bucket: Bucket, biospex: Biospex, tmp_path: Path
) -> None:
    path = tmp_path / "export.zip"
    rows = "imageName\nKu\u0308ste.jpg\n".encode()
    path.write_bytes(zip_of({"K\u00fcste.jpg": b"image", MANIFEST_NAME: rows}))
    biospex.s3.upload_file(str(path), bucket.name, f"export/{path.name}")
    lane, _, [batch] = Split(bucket, path, "auto", tmp_path).run()
    assert isinstance(lane, Extract)
    assert "its manifest spells 'K\u00fcste.jpg' in another way" in lane.reason
    images = {"Ku\u0308ste.jpg": hashlib.sha256(b"image").hexdigest()}
    check([batch], [["Ku\u0308ste.jpg"]], images, tmp_path)


def check(batches: list[bytes], rows: Any, images: dict[str, str], directory: Path) -> None:
    """Check that every installed program reads the rows and images of the batches."""
    found_rows: list[list[str]] = []
    found_images: dict[str, str] = {}
    for number, data in enumerate(batches):
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
        path = directory / f"part{number}.zip"
        path.write_bytes(data)
        assert list(accepted(path))
    assert found_rows == rows
    assert found_images == images
