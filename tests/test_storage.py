import io
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest

from flows.splitter import storage
from flows.splitter.errors import explain, is_transient
from flows.splitter.storage import CLIENT_CONFIG, MAX_PARTS, MIB, Bucket, ObjectError, StoredObject

METADATA = {"rows": "1-2000", "source-etag": "abc"}
LARGE = 20 * MIB + 5


class Stream(io.RawIOBase):
    """What a batch is to an upload: bytes that come once, in order."""

    def __init__(self, data: bytes, fails_at: int | None = None) -> None:
        self._data = io.BytesIO(data)
        self._fails_at = fails_at

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._fails_at is not None and self._data.tell() >= self._fails_at:
            raise OSError("the images are gone")
        return self._data.readinto(buffer)


@pytest.fixture
def bucket(s3: Any, bucket_name: str) -> Bucket:
    return Bucket(s3, bucket_name)


def put(bucket: Bucket, data: bytes, key: str = "batch/a-part1.zip", **metadata: str) -> bool:
    return bucket.put_once(Stream(data), len(data), key, metadata or METADATA, lambda _: None)


def bytes_at(s3: Any, bucket: Bucket, key: str) -> bytes:
    data: bytes = s3.get_object(Bucket=bucket.name, Key=key)["Body"].read()
    return data


@pytest.mark.parametrize("size", [0, 1, 8 * MIB - 1, 8 * MIB, LARGE], ids="{:,} bytes".format)
def test_what_goes_up_comes_down_byte_for_byte(size: int, bucket: Bucket, tmp_path: Path) -> None:
    data = os.urandom(size)
    assert put(bucket, data)
    found = bucket.find("batch/a-part1.zip")
    assert found
    assert found.size == size
    if size:
        bucket.download("batch/a-part1.zip", found, tmp_path / "archive", lambda _: None)
        assert (tmp_path / "archive").read_bytes() == data


@pytest.mark.parametrize("size", [5, LARGE], ids=["in one request", "in parts"])
def test_a_batch_is_a_zip_and_says_where_it_comes_from(size: int, s3: Any, bucket: Bucket) -> None:
    put(bucket, b"x" * size)
    head = s3.head_object(Bucket=bucket.name, Key="batch/a-part1.zip")
    assert head["ContentType"] == "application/zip"
    assert head["Metadata"] == METADATA


@pytest.mark.parametrize("size", [5, LARGE], ids=["in one request", "in parts"])
def test_progress_adds_up_to_the_size(size: int, bucket: Bucket, tmp_path: Path) -> None:
    up: list[int] = []
    down: list[int] = []
    bucket.put_once(Stream(b"x" * size), size, "a.zip", METADATA, up.append)
    bucket.download("a.zip", bucket.archive("a.zip"), tmp_path / "a", down.append)
    assert (sum(up), sum(down)) == (size, size)


def test_a_batch_that_is_there_is_not_put_again(s3: Any, bucket: Bucket) -> None:
    assert put(bucket, b"first")
    steps: list[int] = []
    unread = Stream(b"other", fails_at=0)
    assert not bucket.put_once(unread, 5, "batch/a-part1.zip", METADATA, steps.append)
    assert steps == [5]
    assert bytes_at(s3, bucket, "batch/a-part1.zip") == b"first"


@pytest.mark.parametrize(
    ("data", "rows"), [(b"longer", "1-2000"), (b"other", "1-10")], ids=["size", "metadata"]
)
def test_another_batch_in_its_place_is_replaced(
    data: bytes, rows: str, s3: Any, bucket: Bucket
) -> None:
    put(bucket, b"first", rows="1-2000")
    assert put(bucket, data, rows=rows)
    assert bytes_at(s3, bucket, "batch/a-part1.zip") == data


@pytest.mark.parametrize("fails_at", [0, 9 * MIB, 17 * MIB], ids="{:,}".format)
def test_a_batch_that_cannot_be_read_leaves_nothing(fails_at: int, s3: Any, bucket: Bucket) -> None:
    content = Stream(b"x" * LARGE, fails_at)
    with pytest.raises(OSError, match="the images are gone"):
        bucket.put_once(content, LARGE, "batch/a-part1.zip", METADATA, lambda _: None)
    assert bucket.find("batch/a-part1.zip") is None
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket.name)


def test_an_archive_that_is_not_there_is_said(bucket: Bucket) -> None:
    assert bucket.find("export/a.zip") is None
    with pytest.raises(ObjectError, match=rf"no export export/a\.zip in the bucket {bucket.name}"):
        bucket.archive("export/a.zip")


def test_a_bucket_that_is_not_there_is_said(s3: Any) -> None:
    with pytest.raises(ObjectError, match="in the bucket not-there"):
        Bucket(s3, "not-there").archive("export/a.zip")


def test_an_empty_archive_is_said(bucket: Bucket) -> None:
    put(bucket, b"", "export/a.zip")
    with pytest.raises(ObjectError, match=r"export/a\.zip .* is empty"):
        bucket.archive("export/a.zip")


def test_an_archive_that_is_replaced_under_way_is_said(bucket: Bucket, tmp_path: Path) -> None:
    put(bucket, b"old", "export/a.zip")
    old = bucket.archive("export/a.zip")
    put(bucket, b"new", "export/a.zip", rows="other")
    with pytest.raises(ObjectError, match="was replaced while it was read"):
        bucket.download("export/a.zip", old, tmp_path / "a.zip", lambda _: None)


class Faulty(BaseHTTPRequestHandler):
    """An S3 that breaks every download off after a few bytes, or forbids everything."""

    def do_HEAD(self) -> None:
        self.send_response(403 if "forbidden" in self.path else 200)
        self.send_header("Content-Length", "1000")
        self.send_header("ETag", '"tag"')
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"a few bytes")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def faulty() -> Iterator[Bucket]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{server.server_port}",
            region_name="us-east-2",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            config=CLIENT_CONFIG,
        )
        yield Bucket(client, "bucket")
        server.shutdown()
        thread.join()


def test_a_download_that_breaks_off_again_and_again_is_worth_another_try(
    faulty: Bucket, tmp_path: Path
) -> None:
    with pytest.raises(Exception) as failure:
        faulty.download("a.zip", StoredObject(1000, '"tag"', {}), tmp_path / "a", lambda _: None)
    assert is_transient(failure.value)
    assert "ask for the batches again later" in explain(failure.value)
    assert not (tmp_path / "a").exists()


def test_an_archive_that_may_not_be_read_is_said(faulty: Bucket) -> None:
    with pytest.raises(ObjectError, match=r"export forbidden\.zip .* may not be read"):
        faulty.archive("forbidden.zip")


@pytest.mark.parametrize(
    ("size", "part"),
    [(0, 8 * MIB), (8 * MIB * MAX_PARTS, 8 * MIB), (8 * MIB * MAX_PARTS + 1, 8 * MIB + 1)],
)
def test_parts_grow_where_there_would_be_too_many(size: int, part: int) -> None:
    assert storage.part_size(size) == part
