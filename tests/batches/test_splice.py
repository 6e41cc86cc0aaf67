import io
import os
import random
import shutil
import subprocess
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cost import Cost
from bench.cost import requests as planned_requests
from devtools.object_store import seaweedfs
from splitter.archives import zip_records
from splitter.archives.members import ArchiveError
from splitter.archives.zip_index import MemberSpan, ZipIndex
from splitter.aws.s3 import CLIENT_CONFIG, MIB, Bucket, ObjectError, StoredObject
from splitter.batches.assembly import (
    PARALLEL_COPIES,
    AssemblyError,
    PartPool,
    SentPart,
    assemble,
)
from splitter.batches.splice import (
    S3_LIMITS,
    PartLimits,
    Plan,
    Uploaded,
    parts,
    plan_batch,
    reads,
    verify,
)
from splitter.batches.windows import Range
from splitter.manifest.partition import Batch
from tests.helpers.archives import Unseekable, index_of, zip_of
from tests.helpers.other_programs import COMMANDS, accepts

GIB = 1024 * MIB
EXPORT = next((Path(__file__).parent.parent / "fixtures").glob("41-*.zip"))
MODIFIED = (2026, 11, 24, 6, 43, 56)


def batch_of(images: Sequence[str]) -> Batch:
    manifest = "\n".join(("imageName", *images, ""))
    return Batch(1, 1, len(images), manifest.encode(), tuple(images))


def planned(data: bytes, images: Sequence[str], limits: PartLimits = S3_LIMITS) -> Plan:
    return plan_batch(batch_of(images), index_of(data).members, MODIFIED, limits)


def assembled(plan: Plan, source: bytes) -> bytes:
    """The batch as S3 assembles it."""
    content = b""
    for part in plan.parts:
        if isinstance(part, Range):
            content += source[part.start : part.end]
            continue
        content += b"".join(source[found.start : found.end] for found in part.ranges)
        content += part.end
    return content


def open_zip(content: bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(content))


@st.composite
def sources(draw: st.DrawFn) -> bytes:
    """Archives of up to 30 small images in any order, some with noise and folders in between."""
    sizes = draw(st.lists(st.integers(0, 400), min_size=1, max_size=30))
    names = draw(st.permutations([f"{number}.jpg" for number in range(len(sizes))]))
    files: list[tuple[str, bytes]] = []
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        files.append((name, random.Random(name).randbytes(size)))
        match draw(st.sampled_from(["", "", "noise", "folder"])):
            case "noise":
                files.append((f"__MACOSX/._{name}", b"noise"))
            case "folder":
                files.append((f"{number}/", b""))
    files.append(("manifest.csv", b"imageName\n"))
    method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    return zip_of(files, method, draw(st.builds(Unseekable) | st.builds(io.BytesIO)))


small_limits = st.builds(
    PartLimits,
    min_part_size=st.integers(1, 2000),
    max_copy_size=st.integers(1, 2000),
    max_parts=st.integers(2, 40),
    max_gap=st.integers(0, 300),
    window=st.integers(1, 2000),
    batches=st.integers(1, 3),
)


@given(st.data(), sources(), small_limits)
def test_a_plan_keeps_the_limits_and_makes_a_complete_zip(
    draws: st.DataObject, source: bytes, limits: PartLimits
) -> None:
    members = index_of(source).members
    names = [name for name in members if name.endswith(".jpg")]
    images = draws.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    plan = planned(source, images, limits)

    content = assembled(plan, source)
    assert len(content) == plan.size == sum(part.size for part in plan.parts)
    with open_zip(content) as batch, open_zip(source) as archive:
        assert batch.testzip() is None
        *order, last = batch.namelist()
        assert order == sorted(images, key=lambda name: members[name].start)
        assert (last, batch.read(last)) == ("manifest.csv", batch_of(images).manifest)
        for name in images:
            assert batch.read(name) == archive.read(name)
            assert about(batch.getinfo(name)) == about(archive.getinfo(name))

    *parts, final = plan.parts
    assert isinstance(final, Uploaded)
    assert len(plan.parts) <= limits.max_parts
    least = max(limits.min_part_size, -(-plan.size // (limits.max_parts - 1)))
    for part in parts:
        assert least <= part.size <= max(2 * least, limits.max_copy_size)
    for part in plan.parts:
        if isinstance(part, Uploaded):
            assert part.size - len(part.end) < 2 * least  # what is fetched into memory
    if plan.size < limits.min_part_size:
        assert not parts


def about(info: zipfile.ZipInfo) -> list[object]:
    """The fields of a member's entry in the central directory that a batch keeps."""
    kept = ("orig_filename", "flag_bits", "compress_type", "date_time", "CRC", "file_size")
    return [getattr(info, name) for name in (*kept, "compress_size")]


def kinds(plan: Plan) -> str:
    """The parts of a plan: C for each that is copied, U for each that is uploaded."""
    return "".join("C" if isinstance(part, Range) else "U" for part in plan.parts)


def test_a_long_run_is_copied_in_parts_of_the_same_size() -> None:
    files = {f"{number}.jpg": bytes(100) for number in range(10)}
    source = zip_of(files, zipfile.ZIP_STORED)
    plan = planned(source, list(files), PartLimits(min_part_size=50, max_copy_size=1350))
    assert kinds(plan) == "CU"
    plan = planned(source, list(files), PartLimits(min_part_size=50, max_copy_size=1349))
    assert kinds(plan) == "CCU"
    assert [part.size for part in plan.parts[:2]] == [675, 675]


@pytest.mark.parametrize("name", ["contiguous", "scattered", "mixed"])
def test_the_bytes_of_a_batch_do_not_depend_on_its_parts(name: str) -> None:
    images, _ = BATCHES[name]
    plans = [planned(ARCHIVE, images, PartLimits(max_copy_size=size * MIB)) for size in (5, 256)]
    few, many = (assembled(plan, ARCHIVE) for plan in plans)
    assert few == many


def test_three_batches_of_2_gb_fill_the_width_of_the_copies() -> None:
    info = zipfile.ZipInfo("a.jpg", MODIFIED)
    info.CRC = 0
    span = MemberSpan(info, 0, 2_000_000_000)
    plan = plan_batch(batch_of(["a.jpg"]), {"a.jpg": span}, MODIFIED)
    assert 3 * len(plan.parts) > PARALLEL_COPIES


def test_a_short_run_is_filled_up_from_the_front_of_a_long_one() -> None:
    files = {name: bytes(size) for name, size in [("a", 10), ("x", 999), ("b", 900), ("c", 900)]}
    plan = planned(
        zip_of(files, zipfile.ZIP_STORED), ["a", "b", "c"], PartLimits(min_part_size=300, max_gap=0)
    )
    assert kinds(plan) == "UCU"
    first, second, _ = plan.parts
    assert isinstance(first, Uploaded)
    assert first.size == 300
    assert [found.size for found in first.ranges] == [41, 259]
    assert second.size == 2 * 931 - 259


@pytest.mark.parametrize("mode", [0o100000, 0o100400, 0o104755], ids=oct)
def test_members_of_a_batch_are_regular_files_of_any_mode(mode: int) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        info = zipfile.ZipInfo("a.jpg")
        info.external_attr = mode << 16 | 0x02  # DOS: hidden
        archive.writestr(info, b"image")
        archive.writestr("manifest.csv", "imageName\na.jpg\n")
    source = data.getvalue()
    with open_zip(assembled(planned(source, ["a.jpg"]), source)) as made:
        assert {info.external_attr for info in made.infolist()} == {0o100644 << 16}


def test_small_gaps_are_read_with_their_neighbours() -> None:
    """As in ZIPs of macOS: a resource fork of some hundred bytes after every image."""
    files: dict[str, bytes] = {}
    for number in range(50):
        files |= {f"{number}.jpg": bytes(1000), f"__MACOSX/._{number}.jpg": bytes(200)}
    source = zip_of(files, zipfile.ZIP_STORED)
    images = [name for name in files if not name.startswith("__")]
    for max_gap, requests in [(0, 50), (300, 7)]:
        limits = PartLimits(min_part_size=10_000, max_gap=max_gap, window=10_000)
        assert len(reads([planned(source, images, limits)], limits)) == requests


def test_a_batch_of_less_than_5_mib_is_one_put() -> None:
    source = zip_of({"a.jpg": bytes(4 * MIB), "b.jpg": bytes(2 * MIB)}, zipfile.ZIP_STORED)
    assert kinds(planned(source, ["a.jpg"])) == "U"
    assert kinds(planned(source, ["a.jpg", "b.jpg"])) == "CU"


@pytest.mark.parametrize("program", COMMANDS)
def test_other_programs_open_the_batch_of_a_real_export(program: str, tmp_path: Path) -> None:
    source = EXPORT.read_bytes()
    images = [name for name in index_of(source).members if name != "manifest.csv"]
    plan = planned(source, images[::2], PartLimits(min_part_size=10_000))
    path = tmp_path / "batch.zip"
    path.write_bytes(assembled(plan, source))
    accepts(program, path)


def run(command: list[str], path: Path, *names: str) -> bytes:
    """Run another program on a ZIP; it must not even warn."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([*command, str(path), *names], check=True, capture_output=True)
    assert not done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch of 6 GiB from an archive of 9; both are files of holes."""
    directory = tmp_path_factory.mktemp("wide")
    source, path = directory / "source.zip", directory / "batch.zip"
    infos = []
    with source.open("wb") as file:
        for number in range(6):
            infos.append(info := zipfile.ZipInfo(f"{number}.jpg"))
            info.compress_size = info.file_size = 3 * GIB // 2
            info.CRC = 0
            info.header_offset = file.tell()
            file.write(zip_records.local_file_header(info))
            file.seek(info.file_size, os.SEEK_CUR)
        file.writelines(zip_records.central_directory(infos, file.tell()))

    def read(start: int, length: int) -> bytes:
        with source.open("rb") as file:
            file.seek(start)
            data: bytes = file.read(length)
            return data

    index = ZipIndex(read, source.stat().st_size)
    images = [f"{number}.jpg" for number in (5, 4, 1, 0)]
    plan = plan_batch(batch_of(images), index.members, MODIFIED)
    starts = [info.header_offset for info in infos]
    with path.open("wb") as batch:
        for part in plan.parts:
            begin = batch.tell()
            if isinstance(part, Uploaded):
                assert not part.ranges
                batch.write(part.end)
                continue
            for start in starts:
                if part.start <= start < part.end:
                    batch.seek(begin + start - part.start)
                    batch.write(read(start, 100))
            batch.seek(begin + part.size)
    assert path.stat().st_size == plan.size > 6 * GIB
    return path


@pytest.mark.parametrize(
    "command",
    [["unzip", "-p"], ["7z", "x", "-so"], ["bsdtar", "-xOf"]],
    ids=lambda command: command[0],
)
def test_other_programs_find_a_manifest_behind_6_gib(command: list[str], wide: Path) -> None:
    assert run(command, wide, "manifest.csv").startswith(b"imageName\n5.jpg\n")


def test_jar_lists_a_batch_beyond_4_gib(wide: Path) -> None:
    listed = run(["jar", "-tf"], wide).decode().split()
    assert listed == ["0.jpg", "1.jpg", "4.jpg", "5.jpg", "manifest.csv"]


def test_python_finds_every_member_of_a_batch_beyond_4_gib(wide: Path) -> None:
    with zipfile.ZipFile(wide) as batch:
        assert batch.read("manifest.csv").startswith(b"imageName\n5.jpg\n")
        for info in batch.infolist()[:-1]:
            with batch.open(info) as content:  # checks the header in front of the content
                assert content.read(100) == bytes(100)


# In S3, over HTTP. SeaweedFS copies ranges, refuses parts that are too small, and honours the
# conditions of copies and reads, as S3 does.

IMAGES = {
    f"{number:02}.jpg": random.Random(number).randbytes(size)
    for number, size in enumerate([2 * MIB, 700_000, 6 * MIB, 100, 3 * MIB, 900_000] * 4)
}
NAMES = list(IMAGES)
ARCHIVE = zip_of(IMAGES | {"manifest.csv": b""}, zipfile.ZIP_STORED, Unseekable())
KEY = "export/source.zip"
BATCHES = {
    "contiguous": (NAMES[:12], "CU"),
    "scattered": ([*NAMES[4::6], *NAMES[::6]], "UUUUU"),
    "mixed": ([*NAMES[12:18], *NAMES[:3:2], *NAMES[6:8]], "UUCU"),
    "a single put": (NAMES[3:6], "U"),
}


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as url:
        yield boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-2",
            aws_access_key_id="any",
            aws_secret_access_key="any",
            config=CLIENT_CONFIG,
        )


@pytest.fixture(scope="module")
def bucket(object_store: Any) -> Bucket:
    name = f"bucket-{uuid4()}"
    object_store.create_bucket(Bucket=name)
    object_store.put_object(Bucket=name, Key=KEY, Body=ARCHIVE)
    return Bucket(object_store, name)


@pytest.fixture
def pool() -> Iterator[PartPool]:
    with PartPool(senders=4) as threads:
        yield threads


@pytest.fixture
def source(bucket: Bucket) -> StoredObject:
    return bucket.archive(KEY)


@pytest.fixture
def requests(object_store: Any) -> Iterator[Counter[str]]:
    """The requests sent since, by the names of their operations."""
    counter: Counter[str] = Counter()

    def count(model: Any, **_: object) -> None:
        counter[model.name] += 1

    object_store.meta.events.register("before-call.s3", count)
    yield counter
    object_store.meta.events.unregister("before-call.s3", count)


@pytest.fixture
def splice_to(bucket: Bucket, source: StoredObject, pool: PartPool) -> Callable[[Plan, str], bool]:
    def run(plan: Plan, key: str) -> bool:
        done: list[int] = []
        [planned] = parts([plan], bucket, KEY, source)
        pool.progress = done.append
        made = assemble(bucket, key, planned, {"rows": "1-9"}, pool)
        assert sum(done) == plan.size
        return made

    return run


def stored(object_store: Any, bucket: Bucket, key: str) -> bytes:
    content = object_store.get_object(Bucket=bucket.name, Key=key)["Body"].read()
    assert isinstance(content, bytes)
    return content


def nothing_is_left(object_store: Any, bucket: Bucket, key: str) -> bool:
    uploads = object_store.list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])
    return bucket.find(key) is None and not uploads


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_assembled_as_planned(
    name: str,
    object_store: Any,
    bucket: Bucket,
    splice_to: Callable[[Plan, str], bool],
    requests: Counter[str],
) -> None:
    images, expected = BATCHES[name]
    key = f"batch/{name}.zip"
    plan = planned(ARCHIVE, images)
    assert kinds(plan) == expected
    assert splice_to(plan, key)
    assert requests_of(planned_requests([plan])) == +requests
    content = stored(object_store, bucket, key)
    assert content == assembled(plan, ARCHIVE)
    head = object_store.head_object(Bucket=bucket.name, Key=key)
    assert (head["ContentType"], head["Metadata"]) == ("application/zip", {"rows": "1-9"})
    requests.clear()
    verify(bucket, key, batch_of(images))
    # Half of a request for each image, or two for one that is longer than a request.
    assert requests["GetObject"] <= 3 + len(images)

    requests.clear()
    assert not splice_to(plan, key)
    assert requests == {"HeadObject": 1}
    assert splice_to(plan, f"{key}.again")
    assert stored(object_store, bucket, f"{key}.again") == content


def requests_of(cost: Cost) -> Counter[str]:
    counter = Counter(
        UploadPartCopy=cost.copies,
        GetObject=cost.gets,
        HeadObject=cost.heads,
        CreateMultipartUpload=cost.posts // 2,
        CompleteMultipartUpload=cost.posts // 2,
    )
    counter["UploadPart" if cost.posts else "PutObject"] = cost.puts
    return +counter


def test_batches_of_a_shuffled_archive_read_it_once_together(
    object_store: Any,
    bucket: Bucket,
    source: StoredObject,
    requests: Counter[str],
    pool: PartPool,
) -> None:
    """As many batches as are assembled at a time; each has the bytes of a batch made alone."""
    limits = PartLimits(window=MIB, batches=3)
    plans = [planned(ARCHIVE, NAMES[first::3]) for first in range(3)]
    planned_parts = parts(plans, bucket, KEY, source, limits)
    keys = [f"batch/together-{number}.zip" for number in range(3)]
    with ThreadPoolExecutor(3) as tasks:
        made = [
            tasks.submit(assemble, bucket, key, some, {}, pool)
            for key, some in zip(keys, planned_parts, strict=True)
        ]
        assert all(future.result() for future in made)
    expected = planned_requests(plans, limits)
    # Bytes that the first has read before the others begin are read again.
    assert expected.gets <= requests["GetObject"] < 2 * expected.gets
    assert expected.bytes_read <= len(ARCHIVE)
    assert expected.gets < len(reads(plans, replace(limits, batches=1)))
    for key, plan in zip(keys, plans, strict=True):
        assert stored(object_store, bucket, key) == assembled(plan, ARCHIVE)


@pytest.mark.parametrize("name", ["contiguous", "scattered", "a single put"])
def test_a_source_replaced_after_the_plan_fails_and_leaves_nothing(
    name: str, object_store: Any, bucket: Bucket, pool: PartPool
) -> None:
    key, source_key = f"batch/{name}-replaced.zip", "export/replaced.zip"
    object_store.put_object(Bucket=bucket.name, Key=source_key, Body=ARCHIVE)
    source = bucket.archive(source_key)
    object_store.put_object(Bucket=bucket.name, Key=source_key, Body=ARCHIVE[:-1] + b"!")
    plan = planned(ARCHIVE, BATCHES[name][0])
    with pytest.raises(ObjectError, match=r"export/replaced\.zip. was replaced"):
        [planned_parts] = parts([plan], bucket, source_key, source)
        assemble(bucket, key, planned_parts, {}, pool)
    assert nothing_is_left(object_store, bucket, key)


def test_a_failed_part_aborts_the_upload(
    object_store: Any, bucket: Bucket, splice_to: Callable[[Plan, str], bool]
) -> None:
    plan = planned(ARCHIVE, NAMES)
    beyond = Range(0, 2 * len(ARCHIVE))
    with pytest.raises(object_store.exceptions.ClientError):
        splice_to(replace(plan, parts=(beyond, *plan.parts[1:])), "batch/failed.zip")
    assert nothing_is_left(object_store, bucket, "batch/failed.zip")


@pytest.mark.parametrize("name", ["contiguous", "a single put"])
def test_a_batch_of_another_size_than_planned_is_removed(
    name: str, object_store: Any, bucket: Bucket, source: StoredObject, pool: PartPool
) -> None:
    [[*first, last]] = parts([planned(ARCHIVE, BATCHES[name][0])], bucket, KEY, source)
    assert isinstance(last, SentPart)
    wrong = [*first, replace(last, size=last.size + 1)]
    with pytest.raises(AssemblyError, match="instead of"):
        assemble(bucket, "batch/size.zip", wrong, {}, pool)
    assert nothing_is_left(object_store, bucket, "batch/size.zip")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data.replace(IMAGES["04.jpg"][:20], bytes(20)), ArchiveError),
        (lambda data: data[:-1], ArchiveError),
        (lambda _: assembled(planned(ARCHIVE, NAMES[:3]), ARCHIVE), AssemblyError),
        (lambda _: zip_of(dict.fromkeys([*NAMES[3:6], "manifest.csv"], b"")), AssemblyError),
    ],
    ids=["image", "end", "images", "manifest"],
)
def test_a_batch_that_does_not_verify_is_removed(
    change: Callable[[bytes], bytes], error: type[Exception], object_store: Any, bucket: Bucket
) -> None:
    images = NAMES[3:6]
    content = change(assembled(planned(ARCHIVE, images), ARCHIVE))
    object_store.put_object(Bucket=bucket.name, Key="batch/wrong.zip", Body=content)
    with pytest.raises(error):
        verify(bucket, "batch/wrong.zip", batch_of(images))
    assert bucket.find("batch/wrong.zip") is None


def test_a_broken_response_is_resumed() -> None:
    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionResetError

    class Client:
        bodies: Sequence[io.BytesIO] = ()
        ranges: Sequence[str] = ()

        def get_object(self, **options: str) -> dict[str, io.BytesIO]:
            body, *self.bodies = self.bodies
            self.ranges = [*self.ranges, options["Range"]]
            return {"Body": body}

    client = Client()
    bucket = Bucket(client, "any")  # type: ignore[arg-type]
    client.bodies = [io.BytesIO(b"sh"), Breaking(), Breaking(), io.BytesIO(b"ort")]
    assert bucket.read("key", '"etag"', 10, 5) == b"short"
    assert client.ranges == ["bytes=10-14", "bytes=12-14", "bytes=12-14", "bytes=12-14"]
    client.bodies = [Breaking() for _ in range(5)]
    with pytest.raises(ConnectionResetError):
        bucket.read("key", '"etag"', 0, 5)
