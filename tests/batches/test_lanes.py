"""The lanes of archives in S3 and the reasons for them."""

import pickle
import zipfile
from typing import Any

import pytest

from splitter.aws.s3 import Bucket
from splitter.batches.lanes import Extract, Splice, choose_lane
from splitter.errors import ExportError, SetupError
from tests.helpers.archives import (
    FILES,
    ODD_ZIPS,
    STREAMED,
    Unseekable,
    set_on,
    tar_of,
    with_directory,
    zip_of,
)
from tests.helpers.exports import KEY, export_of, settings_of

TAR = tar_of(FILES)


def test_a_zip_that_s3_can_copy_is_spliced_with_its_batches(bucket: Bucket) -> None:
    lane = choose_lane(export_of(bucket, STREAMED), settings_of(batch_size=1))
    assert isinstance(lane, Splice)
    assert list(lane.index.members) == list(FILES)
    assert lane.reason.text == (
        "S3 can copy every file; compared the headers of all 3 files, unpacked 3"
    )
    assert [batch.images for batch in lane.parts.batches] == [("a.jpg",), ("b.jpg",)]


@pytest.mark.parametrize(
    ("data", "changes", "reason"),
    [
        (TAR, {}, "a tar archive cannot be copied piece by piece"),
        (TAR, {"split_strategy": "extract"}, "SPLIT_STRATEGY asks for it"),
        (STREAMED, {"split_strategy": "extract"}, "SPLIT_STRATEGY asks for it"),
        (
            STREAMED,
            {"splice_min_size": len(STREAMED)},
            "archives up to SPLICE_MIN_SIZE are extracted",
        ),
        (
            zip_of({f"images/{name}": data for name, data in FILES.items()}),
            {},
            "its images are in a folder, 'images/'",
        ),
        (zip_of(FILES, zipfile.ZIP_BZIP2), {}, "is compressed by bzip2, not by Deflate"),
        (zip_of(FILES, zipfile.ZIP_STORED, Unseekable()), {}, "stored without its size in front"),
        (with_directory(STREAMED, set_on(0, CRC=7)), {}, "the checksum"),
    ],
    ids=["tar", "tar, asked", "ZIP, asked", "small", "folder", "method", "stream", "checksum"],
)  # fmt: skip
def test_archives_that_are_extracted_and_the_reasons(
    data: bytes, changes: dict[str, Any], reason: str, bucket: Bucket
) -> None:
    lane = choose_lane(export_of(bucket, data), settings_of(**changes))
    assert isinstance(lane, Extract)
    assert reason in lane.reason.text


def test_a_zip_just_above_the_minimum_size_is_spliced(bucket: Bucket) -> None:
    settings = settings_of(splice_min_size=len(STREAMED) - 1)
    assert isinstance(choose_lane(export_of(bucket, STREAMED), settings), Splice)


@pytest.mark.parametrize("data", [TAR, zip_of(FILES, zipfile.ZIP_BZIP2)], ids=["tar", "method"])
def test_an_impossible_splice_is_refused_with_the_reason(data: bytes, bucket: Bucket) -> None:
    with pytest.raises(SetupError, match="SPLIT_STRATEGY is splice, but "):
        choose_lane(export_of(bucket, data), settings_of(split_strategy="splice"))


@pytest.mark.parametrize("strategy", ["auto", "extract", "splice"])
def test_a_row_that_names_an_unusable_file_is_refused_before_any_lane(
    strategy: str, bucket: Bucket
) -> None:
    data, name, words = ODD_ZIPS["encryption"]
    assert name in FILES["manifest.csv"].decode()
    with pytest.raises(ExportError, match=words):
        choose_lane(export_of(bucket, data), settings_of(split_strategy=strategy))


def test_the_reason_escapes_a_name(bucket: Bucket) -> None:
    data = zip_of({**FILES, "c.jpg": b""}, stream=Unseekable()).replace(b"c.jpg", b"\x1b.jpg")
    hidden = with_directory(data, set_on(3, orig_filename="\u202e.jpg", flag_bits=0x808))
    lane = choose_lane(export_of(bucket, hidden), settings_of())
    assert isinstance(lane, Extract)
    assert lane.reason.text.isprintable()


def test_the_manifest_is_read_within_the_limits_of_the_settings(bucket: Bucket) -> None:
    data = zip_of({**FILES, "manifest.csv": FILES["manifest.csv"] + bytes(1000)})
    with pytest.raises(ExportError, match=r"'manifest\.csv' is far too large"):
        choose_lane(export_of(bucket, data), settings_of(max_in_memory=1000))


def connect(name: str) -> Bucket:
    raise ConnectionError(name)


def test_an_unpickled_export_connects_when_it_is_used(bucket: Bucket) -> None:
    here = export_of(bucket, STREAMED)
    source, here._connect = here.source, connect
    there = pickle.loads(pickle.dumps(here))
    assert (there.request, there.source) == (here.request, source)
    with pytest.raises(ConnectionError, match=bucket.name):
        there.read(0, 1)


def test_a_replaced_archive_is_not_read(bucket: Bucket) -> None:
    export = export_of(bucket, STREAMED)
    assert export.source.size == len(STREAMED)
    bucket.put(KEY, bytearray(TAR), {})
    with pytest.raises(ExportError, match="replaced or deleted"):
        choose_lane(export, settings_of())
