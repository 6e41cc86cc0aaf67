"""Plans match the batches of a run, or state that they cannot."""

import re

import pytest

from flows.create_batches import create_batches
from splitter.aws.s3 import Bucket
from splitter.batches.lanes import Export
from splitter.batches.plan import plan
from splitter.errors import ExportError
from splitter.messages import Request
from splitter.settings import Settings
from tests.conftest import EXPORTS
from tests.helpers.archives import FILES, zip_of
from tests.helpers.biospex import Biospex
from tests.helpers.exports import export_of, settings_of


def planned(export: Export, settings: Settings) -> str:
    return "\n".join(plan(export, settings))


@pytest.mark.usefixtures("prefect_api", "workspace")
@pytest.mark.parametrize("splice_min_size", [0, 999999999], ids=["splice", "extract"])
def test_the_plan_of_a_zip_matches_the_batches_of_a_run(
    splice_min_size: int, biospex: Biospex, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "10")
    monkeypatch.setenv("SPLICE_MIN_SIZE", str(splice_min_size))
    settings = Settings.load()
    message = biospex.request(EXPORTS[0])
    request = Request.parse(message)
    source = bucket.archive(request.export_path)
    printed = planned(Export(request, source, settings.limits, lambda _: bucket, bucket), settings)
    assert biospex.batches() == []

    create_batches(message)

    made = biospex.s3.list_objects_v2(Bucket=biospex.bucket, Prefix="batch/")["Contents"]
    lines = re.findall(r"^ +(\d+) +(\d+-\d+) +(\d+) +([\d,]+) +\d+ +\d+$", printed, re.MULTILINE)
    assert [(part, rows, images) for part, rows, images, _ in lines] == [
        ("1", "1-10", "10"),
        ("2", "11-20", "10"),
        ("3", "21-25", "5"),
    ]
    assert [int(size.replace(",", "")) for *_, size in lines] == [entry["Size"] for entry in made]
    assert f"{sum(entry['Size'] for entry in made):,}" in printed


def test_the_plan_of_a_tar_has_no_batches(bucket: Bucket) -> None:
    [tar] = [path for path in EXPORTS if path.suffix == ".gz"]
    printed = planned(export_of(bucket, tar.read_bytes()), settings_of())
    assert "Lane: extract, a tar.gz archive cannot be copied piece by piece" in printed
    assert "known only when it has been unpacked" in printed


def test_a_plan_lists_unlisted_files_and_findings_for_zooniverse(bucket: Bucket) -> None:
    data = zip_of({**FILES, "c.jpg": b"", "notes.txt": b"in no row"})
    printed = planned(export_of(bucket, data), settings_of())
    assert "1 batches, 2 files in no row" in printed
    findings = printed.partition("Zooniverse:\n")[2]
    assert "a.jpg" in findings  # which is no JPEG
    assert "b.jpg" in findings  # which is cut off


@pytest.mark.parametrize("strategy", ["auto", "extract"])
def test_a_plan_refuses_an_export_that_a_run_refuses(strategy: str, bucket: Bucket) -> None:
    data = zip_of({**FILES, "manifest.csv": b"imageName\nz.jpg\n"})
    with pytest.raises(ExportError, match=r"row 2 names 'z\.jpg'"):
        planned(export_of(bucket, data), settings_of(split_strategy=strategy))
