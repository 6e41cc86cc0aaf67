"""Parallel requests of the lanes, on a store whose requests wait as S3's do."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import boto3
import pytest

from bench.export import make_sparse_export
from bench.paced_store import PacedStore, Stored, Traffic
from splitter import zooniverse
from splitter.archives.spliceable import SAMPLE
from splitter.aws.s3 import CLIENT_CONFIG, PARALLEL_DOWNLOADS, Bucket
from splitter.batches.assembly import (
    PARALLEL_BATCHES,
    PARALLEL_COPIES,
    PARALLEL_PARTS,
    PARALLEL_UPLOADS,
    PartPool,
    assemble,
)
from splitter.batches.lanes import RANGE, Splice, choose_lane
from splitter.batches.splice import parts, plan
from tests.helpers.exports import export_in, settings_of

pytestmark = pytest.mark.slow

IMAGES, IMAGE = 4000, 1_000_000
KEY = "export/a.zip"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of 4 GB on a few megabytes of disk."""
    path = tmp_path_factory.mktemp("paced") / "a.zip"
    make_sparse_export(path, IMAGES, IMAGE)
    return path


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def bucket_of(store: PacedStore, servers: ExitStack) -> Bucket:
    client = boto3.client(
        "s3",
        endpoint_url=servers.enter_context(store.served()),
        region_name="us-east-2",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=CLIENT_CONFIG,
    )
    return Bucket(client, "paced")


def splice(bucket: Bucket) -> list[int]:
    """Assemble the batches of an export in parallel; returns their sizes."""
    export = export_in(bucket)
    lane = choose_lane(export, settings_of())
    assert isinstance(lane, Splice)
    plans = plan(lane.parts, lane.index)
    with PartPool() as pool, ThreadPoolExecutor(PARALLEL_BATCHES) as tasks:
        made = [
            tasks.submit(assemble, bucket, f"batch/{number}.zip", some, {}, pool)
            for number, some in enumerate(parts(plans, bucket, KEY, export.source))
        ]
        assert all(future.result() for future in made)
    return [plan.size for plan in plans]


def stored(store: PacedStore) -> list[Stored]:
    return [found for key, found in sorted(store.objects.items()) if key.startswith("batch/")]


def test_copies_fill_the_width_of_the_pool(archive: Path, servers: ExitStack) -> None:
    store = PacedStore(first_byte=0.03, rate=1e9)
    store.add(KEY, archive)
    sizes = splice(bucket_of(store, servers))
    assert [found.size for found in stored(store)] == sizes
    assert store.traffic.copied > 0.99 * sum(sizes)
    assert PARALLEL_COPIES // 8 < store.traffic.most_copies <= PARALLEL_COPIES
    assert not store.uploads


def test_copies_that_are_throttled_are_sent_again(archive: Path, servers: ExitStack) -> None:
    """S3 answers SlowDown to requests beyond its capacity."""
    store = PacedStore(first_byte=0.03, rate=250e6, most_copies=PARALLEL_COPIES // 2)
    store.add(KEY, archive)
    sizes = splice(bucket_of(store, servers))
    assert store.traffic.throttled
    assert [found.size for found in stored(store)] == sizes
    assert not store.uploads


def test_the_members_of_a_sample_are_read_in_parallel(archive: Path, servers: ExitStack) -> None:
    store = PacedStore(first_byte=0.5, rate=1e9)
    store.add(KEY, archive)
    export = export_in(bucket_of(store, servers))
    lane = choose_lane(export, settings_of())
    assert isinstance(lane, Splice)
    assert store.traffic.requests["GET"] < 100
    assert store.traffic.most > SAMPLE // 2


def test_the_images_that_zooniverse_might_refuse_are_read_in_parallel(
    archive: Path, servers: ExitStack
) -> None:
    store = PacedStore(first_byte=0.2, rate=1e9)
    store.add(KEY, archive)
    lane = choose_lane(export_in(bucket_of(store, servers)), settings_of())
    assert isinstance(lane, Splice)
    store.traffic = Traffic()
    zooniverse.inspect(lane.parts, lane.index)
    assert store.traffic.requests["GET"] == 3
    assert store.traffic.most > 1


def test_a_long_stretch_is_read_in_parallel_ranges(archive: Path, servers: ExitStack) -> None:
    store = PacedStore(first_byte=0.2, rate=1e9)
    store.add(KEY, archive)
    export = export_in(bucket_of(store, servers))
    start, length = 3 * IMAGE - 5, 9 * RANGE + 1
    with archive.open("rb") as file:
        file.seek(start)
        assert export.read(start, length) == file.read(length)
    assert store.traffic.requests["GET"] == store.traffic.most == 10


def test_a_download_reads_ranges_in_parallel(tmp_path: Path, servers: ExitStack) -> None:
    make_sparse_export(tmp_path / "a.zip", 400, IMAGE)
    store = PacedStore(first_byte=0.2, rate=1e9)
    store.add(KEY, tmp_path / "a.zip")
    export = export_in(bucket_of(store, servers))
    path = tmp_path / "archive"
    export.bucket.download(KEY, export.source, path, lambda _: None)
    assert store.traffic.most == PARALLEL_DOWNLOADS
    assert path.stat().st_size == export.source.size


def test_each_thread_that_sends_requests_has_a_connection() -> None:
    splice = PARALLEL_COPIES + PARALLEL_PARTS + PARALLEL_BATCHES
    extract = PARALLEL_DOWNLOADS + PARALLEL_UPLOADS + PARALLEL_BATCHES
    threads = max(splice, extract)
    assert CLIENT_CONFIG.max_pool_connections >= threads  # type: ignore[attr-defined]
