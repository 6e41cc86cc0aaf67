import io
import random
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitter.archives import zip_records
from splitter.archives.members import CHUNK, ArchiveError, Limits
from splitter.archives.zip_index import ZipIndex
from tests.helpers.archives import (
    BROKEN_ZIPS,
    FILES,
    ODD_ZIPS,
    STREAMED,
    UNUSUAL_ZIPS,
    index_of_file,
    set_on,
    with_directory,
    zip_of,
)

FIXTURES = sorted((Path(__file__).parent.parent / "fixtures").glob("4*.zip"))
SOURCES = [
    *(pytest.param(path.read_bytes(), id=path.name[:2]) for path in FIXTURES),
    pytest.param(STREAMED, id="streamed"),
    pytest.param(zip_of(FILES, zipfile.ZIP_STORED), id="stored"),
    pytest.param(zip_of({"标本.jpg": b"1", "é/ü.jpg": b"2"}), id="UTF-8 names"),
    pytest.param(b"MZ" + bytes(5000) + STREAMED, id="behind other data"),
]


def index_of(data: bytes, asked: list[int] | None = None) -> ZipIndex:
    """The index of an archive in memory; ``asked`` gets the length of every read."""

    def read(start: int, length: int) -> bytes:
        assert 0 <= start <= start + length <= len(data)
        if asked is not None:
            asked.append(length)
        return data[start : start + length]

    return ZipIndex(read, len(data))


@pytest.mark.parametrize("data", SOURCES)
def test_every_file_is_found_at_its_place(data: bytes) -> None:
    index = index_of(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = [info.filename for info in archive.infolist() if not info.is_dir()]
        assert list(index.members) == files
        for name in files:
            assert index.read(name) == archive.read(name)
            chunks = list(index.chunks(name))
            assert b"".join(chunks) == archive.read(name)
            assert all(len(chunk) <= CHUNK for chunk in chunks)
        spans = list(index.members.values())
        for span, end in zip(
            spans, [*(after.start for after in spans[1:]), archive.start_dir], strict=True
        ):
            assert data.startswith(b"PK\3\4", span.start)
            assert span.end == end


@pytest.mark.parametrize("data", SOURCES)
def test_a_file_on_disk_has_the_same_index(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "export"
    path.write_bytes(data)
    with path.open("rb") as file:
        index, elsewhere = index_of_file(file), index_of(data)
        assert places(index) == places(elsewhere)
        for name in index.members:
            assert index.read(name) == elsewhere.read(name)


def places(index: ZipIndex) -> list[tuple[str, int, int]]:
    return [(name, span.start, span.end) for name, span in index.members.items()]


@pytest.mark.parametrize("on_disk", [True, False], ids=["on disk", "elsewhere"])
def test_any_thread_may_read_any_member(on_disk: bool, tmp_path: Path) -> None:
    files = {f"{number}.jpg": random.Random(number).randbytes(300_000) for number in range(40)}
    path = tmp_path / "export"
    path.write_bytes(zip_of(files))
    with path.open("rb") as file, ThreadPoolExecutor(8) as pool:
        index = index_of_file(file) if on_disk else index_of(path.read_bytes())
        names = list(files) * 3
        assert list(pool.map(index.read, names)) == [files[name] for name in names]


def test_an_archive_without_files_has_an_empty_index() -> None:
    assert index_of(zip_of({})).members == {}
    for folder in ("folder/", "folder\\", "./", "/"):
        index = index_of(zip_of({folder: b""}))
        assert (index.members, index.unusable) == ({}, {})


def test_only_the_end_of_the_archive_is_read() -> None:
    asked: list[int] = []
    data = zip_of({"0.jpg": bytes(5_000_000), **FILES}, zipfile.ZIP_STORED)
    index = index_of(data, asked)
    assert index.read("manifest.csv") == FILES["manifest.csv"]
    assert asked == [128 * 1024]


@pytest.mark.parametrize(("size", "requests"), [(900_000, 1), (2_000_000, 1), (3_000_000, 2)])
def test_an_image_takes_one_request(size: int, requests: int) -> None:
    asked: list[int] = []
    image = random.Random(size).randbytes(size)
    index = index_of(zip_of({"0.jpg": image, "1.jpg": bytes(200_000), **FILES}), asked)
    asked.clear()
    assert b"".join(index.chunks("0.jpg")) == image
    assert len(asked) == requests
    asked.clear()
    assert index.read("0.jpg") == image
    assert len(asked) == 1


def test_a_long_directory_takes_few_requests() -> None:
    asked: list[int] = []
    names = [f"{number:020}.jpg" for number in range(20_000)]
    index = index_of(zip_of(dict.fromkeys(names, b"")), asked)
    assert list(index.members) == names
    assert len(asked) == 3


def test_members_are_in_the_order_of_their_bytes_not_of_the_directory() -> None:
    data = with_directory(STREAMED, list.reverse)
    assert list(index_of(data).members) == list(FILES)


def test_noise_is_left_out_and_belongs_to_no_other_file() -> None:
    index = index_of(zip_of({"a.jpg": b"a", "__MACOSX/._a.jpg": b"noise", "b.jpg": b"b"}))
    assert list(index.members) == ["a.jpg", "b.jpg"]
    assert index.members["a.jpg"].size == index.members["b.jpg"].size


def test_more_than_65535_members() -> None:
    names = [f"{number}.jpg" for number in range(66_000)]
    data = zip_of(dict.fromkeys(names, b""))
    assert b"PK\6\6" in data[-200:]
    assert list(index_of(data).members) == names


def test_offsets_and_sizes_beyond_4_gib() -> None:
    infos = [zipfile.ZipInfo(f"{number}.jpg") for number in range(5)]
    end = 0
    for info in infos:
        info.header_offset = end
        info.compress_size = info.file_size = 5 * 1024**3
        info.CRC = 0
        end += len(zip_records.local_file_header(info)) + info.compress_size
    directory = b"".join(zip_records.central_directory(infos, end))

    def read(start: int, length: int) -> bytes:
        before = max(0, end - start)
        return (bytes(before) + directory[max(0, start - end) :])[:length]

    index = ZipIndex(read, end + len(directory))
    assert [span.size for span in index.members.values()] == [5 * 1024**3 + 30 + 5 + 20] * 5
    assert index.members["4.jpg"].end == end


@pytest.mark.parametrize(("data", "message"), BROKEN_ZIPS.values(), ids=BROKEN_ZIPS)
def test_a_broken_archive_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ArchiveError) as refusal:
        index_of(data)
    assert message in str(refusal.value)
    assert str(refusal.value).startswith("The archive")
    assert str(refusal.value).endswith(".")


def test_a_member_of_another_volume_is_refused() -> None:
    data = bytearray(STREAMED)
    struct.pack_into("<H", data, data.rindex(b"PK\1\2") + 34, 1)  # APPNOTE 4.3.12
    assert list(index_of(bytes(data)).members) == list(FILES)  # the file is complete
    data[data.rindex(b"PK\3\4")] = 0
    with pytest.raises(ArchiveError, match="one volume of several"):
        index_of(bytes(data))


@pytest.mark.parametrize(("data", "name", "reason"), ODD_ZIPS.values(), ids=ODD_ZIPS)
def test_an_odd_file_is_unusable_with_a_reason(data: bytes, name: str, reason: str) -> None:
    index = index_of(data)
    assert reason in index.unusable[name].text
    assert name not in index.members
    assert (name + reason).encode()


@pytest.mark.parametrize("data", UNUSUAL_ZIPS.values(), ids=UNUSUAL_ZIPS)
def test_an_archive_that_a_program_leaves_unusual_is_read(data: bytes) -> None:
    index = index_of(data)
    assert {name: index.read(name) for name in index.members} == FILES


@pytest.mark.parametrize("data", list(UNUSUAL_ZIPS.values())[:2])
def test_bytes_after_the_end_are_remarked_on(data: bytes) -> None:
    [remark] = map(str, index_of(data).remarks)
    assert f"followed by {len(data) - len(STREAMED):,} bytes" in remark


@given(st.data())
def test_a_damaged_archive_is_refused_or_read_within_its_bounds(draws: st.DataObject) -> None:
    data = bytearray(STREAMED)
    for _ in range(draws.draw(st.integers(1, 4))):
        position = draws.draw(st.integers(STREAMED.index(b"PK\1\2"), len(data) - 1))
        data[position] = draws.draw(st.integers(0, 255))
    try:
        index = index_of(bytes(data))
    except ArchiveError:
        return
    end = 0
    for span in index.members.values():
        assert end <= span.start < span.end <= len(data)
        end = span.end


def test_a_damaged_member_is_refused() -> None:
    stored = zip_of(FILES, zipfile.ZIP_STORED)
    index = index_of(stored.replace(b"\xff\xd8\xff", b"\xff\xd8\xfe"))
    for read in (index.read, lambda name: list(index.chunks(name))):
        with pytest.raises(ArchiveError, match=r"'b\.jpg' cannot be unpacked \(its checksum"):
            read("b.jpg")


@pytest.mark.parametrize("size", [len(FILES["b.jpg"]) + 1, 2**25])
def test_a_member_shorter_than_its_stated_size_is_refused_in_the_end(size: int) -> None:
    index = index_of(with_directory(STREAMED, set_on(1, file_size=size)))
    with pytest.raises(ArchiveError, match=r"'b\.jpg' .*it is shorter than the archive says"):
        for _ in index.chunks("b.jpg"):
            pass


def test_a_member_that_unpacks_to_too_much_is_not_read_into_memory() -> None:
    data = with_directory(STREAMED, set_on(2, file_size=2**25))
    with pytest.raises(ArchiveError, match=r"'manifest\.csv' is far too large"):
        index_of(data).read("manifest.csv", Limits(max_in_memory=2**24))


@pytest.mark.parametrize(
    "change", [{"flag_bits": 9}, {"orig_filename": "../a.jpg"}, {"orig_filename": "__MACOSX/a"}]
)
def test_only_files_that_can_be_used_count_towards_the_size_unpacked(
    change: dict[str, object],
) -> None:
    data = with_directory(STREAMED, set_on(0, **change, file_size=2**32 - 2))
    assert list(index_of(data).members) == ["b.jpg", "manifest.csv"]
    with pytest.raises(ArchiveError, match="unpacks to more than"):
        index_of(with_directory(STREAMED, set_on(0, file_size=2**32 - 2)))


def test_threads_read_members_with_extra_fields(
    tmp_path: Path,
) -> None:
    path = tmp_path / "export.zip"
    files = {f"{number}.jpg": bytes([number]) * 5_000 for number in range(100)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.extra = b"\xfe\xca\x20\x00" + bytes(32)
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    with path.open("rb") as file, ThreadPoolExecutor(8) as pool:
        index = index_of_file(file)
        for _ in range(20):
            assert list(pool.map(index.read, files)) == list(files.values())
