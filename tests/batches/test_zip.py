import io
import os
import shutil
import subprocess
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitter.archives.members import Member
from splitter.archives.watermark import StoppedError, Watermark
from splitter.aws.s3 import MAX_PARTS, MIB
from splitter.batches.zip import PART_SIZE, BatchZip
from splitter.manifest import partition as manifest
from splitter.manifest import text as manifest_text
from splitter.manifest.partition import Batch
from tests.helpers.other_programs import COMMANDS, accepts

MODIFIED = (2026, 11, 24, 6, 43, 56)
IMAGES = {"a.jpg": b"\xff\xd8" + b"a" * 3000, "b/ü.jpg": b"", "標本.jpg": bytes(range(256)) * 9000}
ROWS = "imageName,note\na.jpg,1\nb/ü.jpg,2\na.jpg,3\n標本.jpg,4\n"

EXTRACT = {
    "unzip": ["unzip", "-q"],
    "7z": ["7z", "x", "-y"],
    "bsdtar": ["bsdtar", "-xf"],
    "jar": ["jar", "-xf"],
}


def run(command: list[str], path: Path, folder: Path) -> None:
    """Run another program on a ZIP; it must not even warn."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    subprocess.run(
        [*command, str(path)], cwd=folder, env=environment, check=True, capture_output=True
    )


def batch_of(rows: str) -> Batch:
    table = manifest_text.read(rows.encode(), "imageName")
    (batch,) = manifest.partition(table, 1000)
    return batch


class Store:
    """Images in a file, as ``extract`` writes them."""

    def __init__(self, path: Path, images: dict[str, bytes]) -> None:
        self.path = path
        self.members: dict[str, Member] = {}
        with path.open("wb") as file:
            for name, data in images.items():
                place = Member(file.tell(), len(data), zlib.crc32(data), MODIFIED)
                self.members[name] = place
                file.write(data)

    def zip_of(self, batch: Batch) -> BatchZip:
        return BatchZip(batch, self.members, self.path, MODIFIED)


def whole(content: BatchZip) -> bytes:
    return bytes(content.read(0, content.size))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store") / "store", IMAGES)


@pytest.fixture(scope="module")
def data(store: Store) -> bytes:
    return whole(store.zip_of(batch_of(ROWS)))


def test_a_batch_holds_its_manifest_and_images_in_the_order_of_the_rows(
    data: bytes,
) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as batch:
        assert batch.testzip() is None
        found = [(name, batch.read(name)) for name in batch.namelist()]
    assert found == [("manifest.csv", ROWS.encode()), *IMAGES.items()]


def test_images_are_stored_not_compressed_again(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as batch:
        for info in batch.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.date_time == MODIFIED
            assert info.external_attr >> 16 == 0o100644


@pytest.mark.parametrize("tool", EXTRACT)
def test_other_programs_unpack_a_batch_to_the_same_files(
    tool: str, data: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "batch.zip"
    path.write_bytes(data)
    folder = tmp_path / "unpacked"
    folder.mkdir()
    run(EXTRACT[tool], path, folder)
    found = {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
    assert found == {"manifest.csv": ROWS.encode(), **IMAGES}


def test_the_same_batch_gives_the_same_bytes(data: bytes, store: Store) -> None:
    assert whole(store.zip_of(batch_of(ROWS))) == data


def test_the_size_is_known_before_a_byte_is_read(data: bytes, store: Store) -> None:
    assert store.zip_of(batch_of(ROWS)).size == len(data)
    assert data[-22:].startswith(b"PK\5\6")  # the last record, complete


@given(source=st.data())
def test_any_stretch_of_a_batch_can_be_read(
    source: st.DataObject, data: bytes, store: Store
) -> None:
    start = source.draw(st.integers(0, len(data) - 1))
    end = source.draw(st.integers(start, len(data)))
    assert store.zip_of(batch_of(ROWS)).read(start, end) == data[start:end]


def test_several_threads_may_read_at_once(data: bytes, store: Store) -> None:
    content = store.zip_of(batch_of(ROWS))
    starts = [*range(0, len(data), 50_021)] * 5
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda start: content.read(start, min(start + 99_991, len(data))), starts)
        assert list(found) == [data[start : start + 99_991] for start in starts]


def test_parts_are_the_whole_batch_in_order(tmp_path: Path) -> None:
    images = {f"{number}.jpg": os.urandom(3_000_000) for number in range(7)}
    content = Store(tmp_path / "store", images).zip_of(batch_of("\n".join(["imageName", *images])))
    parts = content.parts()
    assert [part.size for part in parts] == [*[PART_SIZE] * 4, content.size - 4 * PART_SIZE]
    assert b"".join(part.content() for part in parts) == whole(content)


def test_a_part_waits_until_its_images_are_unpacked(tmp_path: Path) -> None:
    images = {f"{number}.jpg": os.urandom(3_000_000) for number in range(7)}
    store = Store(tmp_path / "store", images)
    unpacked = Watermark()
    batch = batch_of("\n".join(["imageName", *reversed(images)]))
    parts = BatchZip(batch, store.members, store.path, MODIFIED, unpacked).parts()
    assert [part.position for part in parts] == [
        21_000_000,
        18_000_000,
        12_000_000,
        6_000_000,
        3_000_000,
    ]
    with ThreadPoolExecutor() as pool:
        contents = [pool.submit(part.content) for part in parts]
        unpacked.advance(3_000_000)
        assert len(contents[4].result(10)) == parts[4].size
        unpacked.advance(15_000_000)
        assert len(contents[2].result(10)) == parts[2].size
        assert not contents[1].done()
        unpacked.stop()
        assert isinstance(contents[1].exception(10), StoppedError)


def test_parts_grow_with_the_batch_to_stay_within_the_limit(tmp_path: Path) -> None:
    huge = {"a.jpg": Member(0, PART_SIZE * MAX_PARTS, 0, MODIFIED)}
    parts = BatchZip(batch_of("imageName\na.jpg\n"), huge, tmp_path, MODIFIED).parts()
    assert len(parts) == MAX_PARTS
    assert len({part.size for part in parts[:-1]}) == 1
    assert parts[0].size == PART_SIZE + 1


def batch_of_size(size: int, store: Path) -> BatchZip:
    """A batch ZIP of that many bytes, nearly all of them holes in ``store``."""
    batch = batch_of("imageName\na.jpg\n")
    guess = BatchZip(batch, {"a.jpg": Member(0, size, 0, MODIFIED)}, store, MODIFIED)
    image = Member(0, size - (guess.size - size), 0, MODIFIED)
    with store.open("wb") as file:
        file.truncate(image.size)
    return BatchZip(batch, {"a.jpg": image}, store, MODIFIED)


@pytest.mark.parametrize(
    ("size", "length", "count"),
    [
        (PART_SIZE, PART_SIZE, 1),
        (PART_SIZE + 1, PART_SIZE, 2),
        (PART_SIZE * MAX_PARTS, PART_SIZE, MAX_PARTS),
        (PART_SIZE * MAX_PARTS + 1, PART_SIZE + 1, MAX_PARTS),
        (5 * 1024**4, 549_755_814, MAX_PARTS),
    ],
    ids="{:,}".format,
)
def test_parts_keep_the_limits_of_s3(size: int, length: int, count: int, tmp_path: Path) -> None:
    content = batch_of_size(size, tmp_path / "store")
    assert content.size == size
    *parts, last = content.parts()
    assert {part.size for part in parts} <= {length}
    assert length >= 5 * MIB
    assert len(parts) + 1 == count
    assert 0 < last.size <= length
    assert sum(part.size for part in parts) + last.size == size
    assert content.read(size - 22, size).startswith(b"PK\5\6")


def test_bytes_beyond_4_gib_are_in_place(tmp_path: Path) -> None:
    size = PART_SIZE * MAX_PARTS
    content = batch_of_size(size, tmp_path / "store")
    with (tmp_path / "store").open("r+b") as store:
        store.seek(-5, os.SEEK_END)
        store.write(b"image")
    tail = content.parts()[-1].content()
    assert len(tail) == PART_SIZE
    directory = tail.index(b"PK\1\2")
    assert tail[directory - 5 : directory] == b"image"
    assert tail[: directory - 5] == bytes(directory - 5)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=9),
        st.binary(max_size=99),
        min_size=1,
    )
)
def test_images_of_any_name_and_content_come_back(
    tmp_path_factory: pytest.TempPathFactory, images: dict[str, bytes]
) -> None:
    images.pop("manifest.csv", None)
    store = Store(tmp_path_factory.mktemp("any") / "store", images)
    batch = Batch(1, 1, len(images), b"imageName\n", tuple(images))
    with zipfile.ZipFile(io.BytesIO(whole(store.zip_of(batch)))) as found:
        assert {name: found.read(name) for name in found.namelist()} == {
            "manifest.csv": b"imageName\n",
            **images,
        }


def test_a_store_that_ends_early_is_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", {"a.jpg": b"x" * 1000})
    os.truncate(store.path, 999)
    with pytest.raises(OSError, match="images end before a batch does"):
        whole(store.zip_of(batch_of("imageName\na.jpg\n")))


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowd")
    names = tuple(f"{number}.jpg" for number in range(65_535))
    members = {name: Member(0, 2, zlib.crc32(b"ab"), MODIFIED) for name in names}
    (folder / "store").write_bytes(b"ab")
    batch = Batch(1, 1, len(names), b"imageName\n", names)
    path = folder / "batch.zip"
    content = BatchZip(batch, members, folder / "store", MODIFIED)
    assert path.write_bytes(whole(content)) == content.size
    return path


def test_a_batch_may_hold_more_than_65_535_members(crowd: Path) -> None:
    with zipfile.ZipFile(crowd) as found:
        assert len(found.namelist()) == 65_536
        assert found.read("65534.jpg") == b"ab"


@pytest.mark.parametrize("program", COMMANDS)
def test_other_programs_read_more_than_65_535_members(program: str, crowd: Path) -> None:
    accepts(program, crowd)


@pytest.mark.parametrize("program", COMMANDS)
def test_other_programs_read_a_batch(program: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "batch.zip"
    path.write_bytes(data)
    accepts(program, path)
