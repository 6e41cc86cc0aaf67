import os
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest

from splitter.aws.s3 import CLIENT_CONFIG, MIB, Bucket, ObjectError, StoredObject, expect_owner
from splitter.errors import explain, is_transient, problem_of
from tests.helpers.biospex import Biospex


def put(bucket: Bucket, data: bytes, key: str, **metadata: str) -> None:
    bucket.put(key, bytearray(data), metadata)


@pytest.mark.parametrize("size", [1, 16 * MIB, 40 * MIB + 5], ids="{:,} bytes".format)
def test_an_archive_comes_down_byte_for_byte(size: int, bucket: Bucket, tmp_path: Path) -> None:
    data = os.urandom(size)
    put(bucket, data, "export/a.zip")
    steps: list[int] = []
    bucket.download("export/a.zip", bucket.archive("export/a.zip"), tmp_path / "a", steps.append)
    assert (tmp_path / "a").read_bytes() == data
    assert sum(steps) == size


def test_a_stretch_of_an_archive_is_read(bucket: Bucket) -> None:
    put(bucket, b"0123456789", "export/a.zip")
    assert bucket.read("export/a.zip", bucket.archive("export/a.zip").etag, 3, 4) == b"3456"


@pytest.mark.parametrize("size", [0, 1, 9 * MIB], ids="{:,} bytes".format)
def test_an_object_is_found_with_its_size_and_metadata(size: int, bucket: Bucket) -> None:
    put(bucket, os.urandom(size), "batch/a.zip", rows="1-9")
    found = bucket.find("batch/a.zip")
    assert found
    assert (found.size, found.metadata) == (size, {"rows": "1-9"})
    assert bucket.holds("batch/a.zip", size, {"rows": "1-9"})
    assert not bucket.holds("batch/a.zip", size + 1, {"rows": "1-9"})
    assert not bucket.holds("batch/a.zip", size, {"rows": "1-8"})
    bucket.delete("batch/a.zip")
    bucket.delete("batch/a.zip")
    assert bucket.find("batch/a.zip") is None
    assert not bucket.holds("batch/a.zip", size, {"rows": "1-9"})


def test_an_upload_is_not_hashed_because_tls_protects_it(biospex: Biospex) -> None:
    client = boto3.client("s3", config=CLIENT_CONFIG)
    signed: list[object] = []

    def note(request: AWSPreparedRequest, **_: object) -> None:
        signed.append(request.headers["X-Amz-Content-SHA256"])

    client.meta.events.register("before-send.s3.UploadPart", note)
    upload = Bucket(client, biospex.bucket).begin_upload("batch/a.zip", {})
    upload.complete([upload.upload_part(1, bytearray(b"a part"))])
    assert signed == [b"UNSIGNED-PAYLOAD"]


@pytest.mark.parametrize("after", ["replaced", "deleted"])
def test_a_stretch_of_an_archive_that_is_no_longer_the_same_is_not_read(
    after: str, bucket: Bucket
) -> None:
    put(bucket, b"0123456789", "export/a.zip")
    old = bucket.archive("export/a.zip")
    bucket.delete("export/a.zip")
    if after == "replaced":
        put(bucket, b"9876543210", "export/a.zip")
    with pytest.raises(ObjectError, match="was replaced or deleted while it was read"):
        bucket.read("export/a.zip", old.etag, 3, 4)


def test_a_missing_archive_is_reported(bucket: Bucket) -> None:
    assert bucket.find("export/a.zip") is None
    pattern = rf"no export .export/a\.zip. in the bucket .{bucket.name}"
    with pytest.raises(ObjectError, match=pattern):
        bucket.archive("export/a.zip")


def test_a_missing_bucket_is_reported(biospex: Biospex) -> None:
    with pytest.raises(ObjectError, match=r"no bucket .not-there"):
        Bucket(biospex.s3, "not-there").archive("export/a.zip")


def test_an_empty_archive_is_reported(bucket: Bucket) -> None:
    put(bucket, b"", "export/a.zip")
    with pytest.raises(ObjectError, match=r"export/a\.zip. .* is empty"):
        bucket.archive("export/a.zip")


def test_an_archive_that_is_replaced_during_the_download_is_reported(
    bucket: Bucket, tmp_path: Path
) -> None:
    put(bucket, b"old", "export/a.zip")
    old = bucket.archive("export/a.zip")
    put(bucket, b"new", "export/a.zip", rows="other")
    with pytest.raises(ObjectError, match="was replaced or deleted while it was read"):
        bucket.download("export/a.zip", old, tmp_path / "a.zip", lambda _: None)


def test_every_request_names_the_owner_of_the_bucket_and_a_link_does_not(
    biospex: Biospex, tmp_path: Path
) -> None:
    client = boto3.client("s3", config=CLIENT_CONFIG)
    bucket = Bucket(client, biospex.bucket, "000000000000")
    sent: list[tuple[str, str | None, str | None]] = []

    def note(request: AWSPreparedRequest, event_name: str, **_: object) -> None:
        headers = {name.lower(): str(value) for name, value in request.headers.items()}
        owner, source = (headers.get(f"x-amz-{of}expected-bucket-owner") for of in ("", "source-"))
        sent.append((event_name.rpartition(".")[2], owner, source))

    client.meta.events.register("before-send.s3", note)
    put(bucket, b"0123456789", "export/a.zip")
    source = bucket.archive("export/a.zip")
    bucket.download("export/a.zip", source, tmp_path / "a.zip", lambda _: None)
    upload = bucket.begin_upload("batch/a-part1.zip", {})
    upload.upload_part(2, bytearray(b"a part"))
    upload.complete([upload.copy_part(1, "export/a.zip", source.etag, 0, 10)])
    bucket.begin_upload("batch/a-part2.zip", {})
    assert list(bucket.abort_uploads("batch/a-part")) == ["batch/a-part2.zip"]
    bucket.delete("batch/a-part1.zip")
    with pytest.raises(ObjectError):
        bucket.archive("gone.zip")

    assert {name for name, *_ in sent} == {
        *("PutObject", "HeadObject", "GetObject", "CreateMultipartUpload", "UploadPart"),
        *("UploadPartCopy", "CompleteMultipartUpload", "ListMultipartUploads"),
        *("AbortMultipartUpload", "DeleteObject", "HeadBucket"),
    }
    for name, owner, source_owner in sent:
        assert owner and "000000000000" in owner, name
        assert bool(source_owner) == (name == "UploadPartCopy")
    with urllib.request.urlopen(bucket.presigned_link("export/a.zip", 60)) as answer:
        assert answer.read() == b"0123456789"
    assert "bucket-owner" not in bucket.presigned_link("export/a.zip", 60)


class Faulty(BaseHTTPRequestHandler):
    """S3 of account 111111111111 that breaks off every download and forbids some keys."""

    def do_HEAD(self) -> None:
        expected = self.headers.get("x-amz-expected-bucket-owner", "111111111111")
        forbidden = "forbidden" in self.path or expected != "111111111111"
        self.send_response(403 if forbidden else 200)
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


def test_an_archive_that_may_not_be_read_is_reported(faulty: Bucket) -> None:
    with pytest.raises(ObjectError, match=r"export .forbidden\.zip. .* may not be read"):
        faulty.archive("forbidden.zip")


@pytest.mark.parametrize("owner", ["111111111111", "222222222222"])
def test_a_bucket_of_another_account_is_not_read(owner: str, faulty: Bucket) -> None:
    expect_owner(faulty._client, owner)
    if owner == "111111111111":
        assert faulty.archive("a.zip").size == 1000
        return
    with pytest.raises(ObjectError, match="may not be read") as refusal:
        faulty.archive("a.zip")
    assert "BUCKET_OWNER" in problem_of(refusal.value).advice
