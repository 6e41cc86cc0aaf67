import os
import pickle
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from botocore.exceptions import ClientError

from splitter.aws.s3 import MIB, Bucket, MultipartUpload
from splitter.batches.assembly import AssemblyError, PartPool, SentPart, assemble
from tests.helpers.biospex import Biospex

KEY = "batch/a-part1.zip"
METADATA = {"rows": "1-2000", "source-etag": "abc"}
SIZES = {
    "nothing": [0],
    "one byte": [1],
    "in one request": [8 * MIB],
    "in two parts": [8 * MIB, 1],
    "in parts": [8 * MIB, 8 * MIB, 5],
    "in parts of 5 MiB": [5 * MIB, 5 * MIB],
}


@pytest.fixture
def pool() -> Iterator[PartPool]:
    with PartPool(senders=4) as threads:
        yield threads


@pytest.fixture(params=list(SIZES.values()), ids=list(SIZES))
def pieces(request: pytest.FixtureRequest) -> list[bytes]:
    return [os.urandom(size) for size in request.param]


def parts_of(pieces: Sequence[bytes]) -> list[SentPart]:
    return [SentPart(len(piece), partial(bytearray, piece)) for piece in pieces]


def fail() -> bytearray:
    raise OSError("the images are gone")


def nothing_is_left(biospex: Biospex) -> bool:
    return not biospex.batches() and not biospex.incomplete_uploads()


def test_parts_become_one_zip_with_its_metadata(
    pieces: list[bytes], biospex: Biospex, bucket: Bucket, pool: PartPool
) -> None:
    steps: list[int] = []
    pool.progress = steps.append
    assert assemble(bucket, KEY, parts_of(pieces), METADATA, pool)
    found = biospex.s3.get_object(Bucket=bucket.name, Key=KEY)
    assert found["Body"].read() == b"".join(pieces)
    assert (found["ContentType"], found["Metadata"]) == ("application/zip", METADATA)
    assert sum(steps) == sum(map(len, pieces))


def test_an_existing_object_is_not_sent_again(
    pieces: list[bytes], bucket: Bucket, pool: PartPool
) -> None:
    assemble(bucket, KEY, parts_of(pieces), METADATA, pool)
    unmade = [SentPart(len(piece), fail) for piece in pieces]
    steps: list[int] = []
    pool.progress = steps.append
    assert not assemble(bucket, KEY, unmade, METADATA, pool)
    assert steps == [sum(map(len, pieces))]


@pytest.mark.parametrize(
    ("data", "rows"), [(b"longer", "1-2000"), (b"other", "1-10")], ids=["size", "metadata"]
)
def test_an_object_of_another_size_or_metadata_is_replaced(
    data: bytes, rows: str, biospex: Biospex, bucket: Bucket, pool: PartPool
) -> None:
    assemble(bucket, KEY, parts_of([b"first"]), {"rows": "1-2000"}, pool)
    assert assemble(bucket, KEY, parts_of([data]), {"rows": rows}, pool)
    assert biospex.s3.get_object(Bucket=biospex.bucket, Key=KEY)["Body"].read() == data


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failed_part_leaves_nothing(
    failing: int, biospex: Biospex, bucket: Bucket, pool: PartPool
) -> None:
    parts = parts_of([bytes(8 * MIB)] * 3)
    parts[failing] = SentPart(8 * MIB, fail)
    with pytest.raises(OSError, match="the images are gone"):
        assemble(bucket, KEY, parts, METADATA, pool)
    assert nothing_is_left(biospex)


def test_a_failed_single_part_leaves_nothing(
    biospex: Biospex, bucket: Bucket, pool: PartPool
) -> None:
    with pytest.raises(OSError, match="the images are gone"):
        assemble(bucket, KEY, [SentPart(5, fail)], METADATA, pool)
    assert nothing_is_left(biospex)


def test_parts_that_s3_refuses_leave_nothing(
    biospex: Biospex, bucket: Bucket, pool: PartPool
) -> None:
    parts = parts_of([bytes(5 * MIB - 1), b"end"])
    with pytest.raises(biospex.s3.exceptions.ClientError, match="EntityTooSmall"):
        assemble(bucket, KEY, parts, METADATA, pool)
    assert nothing_is_left(biospex)


@pytest.mark.parametrize("count", [1, 3])
def test_an_object_that_may_not_appear_leaves_nothing(
    count: int, biospex: Biospex, bucket: Bucket, pool: PartPool
) -> None:
    sent: list[int] = []

    def refuse() -> None:
        assert len(sent) in (0, 3)  # a single part is not even made
        assert biospex.batches() == []
        assert len(biospex.incomplete_uploads()) == (1 if sent else 0)
        raise ValueError("the archive is damaged")

    parts = parts_of([bytes(5 * MIB)] * count)
    pool.progress, pool.may_appear = sent.append, refuse
    with pytest.raises(ValueError, match="the archive is damaged"):
        assemble(bucket, KEY, parts, METADATA, pool)
    assert nothing_is_left(biospex)


def test_after_a_failure_waiting_parts_are_not_made(biospex: Biospex, bucket: Bucket) -> None:
    made: list[int] = []

    def make() -> bytearray:
        made.append(1)
        return bytearray(5 * MIB)

    parts = [SentPart(5 * MIB, fail), *[SentPart(5 * MIB, make)] * 40]
    with PartPool(senders=1) as one, pytest.raises(OSError, match="the images are gone"):
        assemble(bucket, KEY, parts, METADATA, one)
    assert len(made) < 40
    assert nothing_is_left(biospex)


def test_a_failed_abort_does_not_hide_the_first_error(
    bucket: Bucket, pool: PartPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def abort(_: MultipartUpload) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied"}}, "AbortMultipartUpload")

    monkeypatch.setattr(MultipartUpload, "abort", abort)
    with pytest.raises(OSError, match="the images are gone"):
        assemble(bucket, KEY, [SentPart(5, fail)] * 2, METADATA, pool)
    assert bucket.find(KEY) is None


def test_parts_are_in_order_whichever_is_sent_first(
    biospex: Biospex, bucket: Bucket, pool: PartPool
) -> None:
    pieces = [bytes([number]) * 5 * MIB for number in range(3)]
    others_are_there = threading.Event()
    steps: list[int] = []

    def first() -> bytearray:
        assert others_are_there.wait(30)
        return bytearray(pieces[0])

    def progress(size: int) -> None:
        steps.append(size)
        if len(steps) == 2:
            others_are_there.set()

    parts = [SentPart(5 * MIB, first), *parts_of(pieces[1:])]
    pool.progress = progress
    assert assemble(bucket, KEY, parts, METADATA, pool)
    assert biospex.s3.get_object(Bucket=bucket.name, Key=KEY)["Body"].read() == b"".join(pieces)
    assert steps == [5 * MIB] * 3


def test_an_object_of_another_size_than_its_parts_is_removed(
    pieces: list[bytes], biospex: Biospex, bucket: Bucket, pool: PartPool
) -> None:
    *parts, last = parts_of(pieces)
    wrong = SentPart(last.size + 1, last.content)
    with pytest.raises(AssemblyError, match="instead of"):
        assemble(bucket, KEY, [*parts, wrong], METADATA, pool)
    assert nothing_is_left(biospex)


def test_a_part_is_in_memory_only_while_it_is_sent(bucket: Bucket, pool: PartPool) -> None:
    alive: Counter[str] = Counter()
    most = 0

    class Content(bytearray):
        def __del__(self) -> None:
            alive["now"] -= 1

    def make() -> Content:
        nonlocal most
        alive["now"] += 1
        most = max(most, alive["now"])
        return Content(8 * MIB)

    assemble(bucket, KEY, [SentPart(8 * MIB, make)] * 16, METADATA, pool)
    assert 1 <= most <= 5  # one for each thread, and one that is just being let go


def test_waiting_parts_are_sent_in_the_order_of_the_archive() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[int] = []

    def first() -> None:
        begun.set()
        go_on.wait()

    with PartPool(senders=1) as pool:
        pool.submit(SentPart(1, bytearray), first)
        begun.wait()
        for position in (30, 10, 20):
            pool.submit(SentPart(1, bytearray, position), partial(done.append, position))
        go_on.set()
    assert done == [10, 20, 30]


def test_a_pool_that_travels_becomes_the_one_pool_of_its_process() -> None:
    steps: list[int] = []
    with PartPool(steps.append) as here:
        there, again = (pickle.loads(pickle.dumps(here)) for _ in range(2))
    assert there is again
    assert there is not here
    there.progress(1)
    assert steps == []
