"""Plans and what they cannot tell; flows/test_finished.py compares them with runs."""

from typing import Any

import pytest

from splitter.aws.s3 import Bucket
from splitter.batches.lanes import Export
from splitter.batches.plan import plan
from splitter.errors import ExportError
from tests.conftest import EXPORTS
from tests.helpers.archives import FILES, zip_of
from tests.helpers.exports import export_of, settings_of


def planned(export: Export, **settings: Any) -> str:
    return "\n".join(plan(export, settings_of(**settings)))


def test_the_plan_of_a_tar_has_no_batches(bucket: Bucket) -> None:
    [tar] = [path for path in EXPORTS if path.suffix == ".gz"]
    printed = planned(export_of(bucket, tar.read_bytes()))
    assert "Lane: extract, a tar.gz archive cannot be copied piece by piece" in printed
    assert "known only when it has been unpacked" in printed


def test_a_plan_lists_unlisted_files_and_findings_for_zooniverse(bucket: Bucket) -> None:
    data = zip_of({**FILES, "c.jpg": b"", "notes.txt": b"in no row"})
    printed = planned(export_of(bucket, data))
    assert "1 batches, 2 files in no row" in printed
    findings = printed.partition("Zooniverse:\n")[2]
    assert "a.jpg" in findings  # which is no JPEG
    assert "b.jpg" in findings  # which is cut off


@pytest.mark.parametrize("strategy", ["auto", "extract"])
def test_a_plan_refuses_an_export_that_a_run_refuses(strategy: str, bucket: Bucket) -> None:
    data = zip_of({**FILES, "manifest.csv": b"imageName\nz.jpg\n"})
    with pytest.raises(ExportError, match=r"row 2 names 'z\.jpg'"):
        planned(export_of(bucket, data), split_strategy=strategy)
