import gzip
import io
import os
import struct
import tarfile
import tempfile
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitter.archives import extract as archive
from splitter.archives import zip_records
from splitter.archives.extract import Contents
from splitter.archives.members import DEFAULT_LIMITS, ArchiveError, Limits, Member
from splitter.archives.watermark import StoppedError, Watermark
from splitter.errors import explain
from tests.helpers.archives import (
    BROKEN_ZIPS,
    FILES,
    Unseekable,
    identified,
    index_of,
    overlap_bomb,
    tar_of,
    zip_of,
)

FIXTURES = sorted((Path(__file__).parent.parent / "fixtures").glob("4*"))
TAR_FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}
COMPRESSIONS = {
    "stored": zipfile.ZIP_STORED,
    "deflate": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}
SMALL = {
    **{f"zip-{name}": zip_of(FILES, method) for name, method in COMPRESSIONS.items()},
    "zip-streamed": zip_of(FILES, stream=Unseekable()),
    **{f"tar-{name}": tar_of(FILES, format) for name, format in TAR_FORMATS.items()},
    **{f"tar.gz-{name}": gzip.compress(tar_of(FILES, form)) for name, form in TAR_FORMATS.items()},
}
CHECKED = [name for name in SMALL if not name.startswith("tar-")]
"""A plain tar has checksums for its headers only."""


CASES = Path(__file__).parent.parent / "fixtures" / "cases"


def extract(data: bytes, folder: Path, limits: Limits = DEFAULT_LIMITS) -> Contents:
    (folder / "export").write_bytes(data)
    return archive.extract(folder / "export", folder / "store", limits=limits)


def files_of(data: bytes) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        contents = extract(data, Path(folder))
        return {name: contents.read(name) for name in contents.members}


def refusal_of(data: bytes) -> str:
    with pytest.raises(ArchiveError) as refusal:
        files_of(data)
    return str(refusal.value)


def unusable_in(data: bytes, limits: Limits = DEFAULT_LIMITS) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        contents = extract(data, Path(folder), limits)
        assert not contents.members.keys() & contents.unusable.keys()
        return {name: problem.text for name, problem in contents.unusable.items()}


def link(name: str, type: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = type
    info.linkname = "a.jpg"
    return info


def sparse_tar(name: str, size: int) -> bytes:
    """A tar with a file of ``size`` bytes of which only the last takes room."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        content = f"1\n{size - 1}\n1\n".encode().ljust(512, b"\0") + b"x"
        info = tarfile.TarInfo(name)
        info.size = len(content)
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": name,
            "GNU.sparse.realsize": str(size),
        }
        archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.name[:2] + path.suffix)
def test_every_file_of_a_real_export_is_unpacked_byte_for_byte(path: Path, tmp_path: Path) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as source:
            expected = {name: source.read(name) for name in source.namelist() if name[-1] != "/"}
    else:
        with tarfile.open(path) as tar:
            files = {info.name.removeprefix("./"): tar.extractfile(info) for info in tar}
            expected = {name: file.read() for name, file in files.items() if file}

    steps: list[int] = []
    contents = archive.extract(path, tmp_path / "store", steps.append)

    assert sum(steps) == sum(map(len, expected.values()))
    assert {name: contents.read(name) for name in contents.members} == expected
    for name, member in contents.members.items():
        assert (member.size, member.crc) == (len(expected[name]), zlib.crc32(expected[name]))
    assert list(contents.members) == list(expected)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ""])
def test_the_format_is_known_by_the_content_under_any_name(
    name: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"export{suffix}"
    path.write_bytes(SMALL[name])
    contents = archive.extract(path, tmp_path / "store")
    assert identified(SMALL[name]) == name.partition("-")[0]
    assert {file: contents.read(file) for file in contents.members} == FILES


def test_a_zip_is_unpacked_while_it_arrives(tmp_path: Path) -> None:
    data = zip_of(FILES)
    index = index_of(data)
    contents = Contents.expected(index, tmp_path / "store")
    arrived = Watermark()
    path = tmp_path / "export"
    path.touch()
    with ThreadPoolExecutor() as pool:
        unpacking = pool.submit(archive.extract_zip, path, index, contents, lambda _: None, arrived)
        written = 0
        for name, span in index.members.items():
            with path.open("ab") as file:
                file.write(data[written : span.end])
            written = span.end
            arrived.advance(written)
            contents.unpacked.wait_for(contents.members[name].end)
            assert contents.read(name) == FILES[name]
        unpacking.result(10)


def test_a_zip_whose_rest_does_not_arrive_is_not_unpacked(tmp_path: Path) -> None:
    index = index_of(zip_of(FILES))
    (tmp_path / "export").touch()
    arrived = Watermark()
    arrived.stop()
    contents = Contents.expected(index, tmp_path / "store")
    with pytest.raises(StoppedError):
        archive.extract_zip(tmp_path / "export", index, contents, arrived=arrived)


def test_another_attempt_takes_nothing_from_the_store(tmp_path: Path) -> None:
    path = tmp_path / "export"
    path.write_bytes(zip_of(FILES))
    index = index_of(path.read_bytes())
    contents = Contents.expected(index, tmp_path / "store")
    archive.extract_zip(path, index, contents)
    arrived = Watermark()
    arrived.stop()
    with pytest.raises(StoppedError):
        archive.extract_zip(path, index, contents, arrived=arrived)
    assert {name: contents.read(name) for name in contents.members} == FILES


def test_the_rest_of_a_partial_write_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:3], at))
    contents = extract(zip_of(FILES), tmp_path)
    assert {name: contents.read(name) for name in contents.members} == FILES


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_an_unpacked_archive_is_complete(make: type, tmp_path: Path) -> None:
    unpacked = extract(make(FILES), tmp_path).unpacked
    unpacked.stop()
    unpacked.wait_for()


@pytest.mark.parametrize("format", TAR_FORMATS.values(), ids=TAR_FORMATS)
def test_a_time_stamp_in_a_tar_is_taken_as_utc(format: int, tmp_path: Path) -> None:
    contents = extract(tar_of({"a.jpg": b"1"}, format), tmp_path)
    assert contents.members["a.jpg"].modified == (2023, 11, 14, 22, 13, 20)


@pytest.mark.parametrize("seconds", [0, -1.5, 1e30, float("inf"), float("nan")])
def test_a_time_stamp_out_of_a_zips_range_is_moved_into_it(seconds: float, tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"mtime": str(seconds)}
    contents = extract(tar_of({}, others=[info]), tmp_path)
    assert 1980 <= contents.members["a.jpg"].modified[0] <= 2107


@pytest.mark.parametrize("name", SMALL)
def test_an_archive_that_ends_early_is_refused_wherever_it_ends(name: str, tmp_path: Path) -> None:
    data = SMALL[name]
    end = len(data.rstrip(b"\0")) if name.startswith("tar-") else len(data)
    for length in {*range(0, end, 97), *range(512, end, 512), end - 1}:
        try:
            contents = extract(data[:length], tmp_path)
        except ArchiveError:
            continue
        # Only behind a file: the manifest shows whether all are there.
        assert name.startswith("tar-")
        assert any("archive.tar-without-end" in remark.code for remark in contents.remarks)


@pytest.mark.parametrize("name", CHECKED)
@given(st.data())
def test_a_changed_byte_never_becomes_another_image(name: str, data: st.DataObject) -> None:
    whole = bytearray(SMALL[name])
    spans = zip_data_spans(bytes(whole)) if name.startswith("zip") else [(0, len(whole))]
    positions = st.sampled_from(spans).flatmap(lambda span: st.integers(span[0], span[1] - 1))
    whole[data.draw(positions)] ^= data.draw(st.integers(1, 255))
    try:
        found = files_of(bytes(whole))
    except ArchiveError:
        return
    assert found == FILES  # as where the bits that fill up the last byte have changed


@pytest.mark.parametrize("position", range(0, 700, 50))
def test_a_changed_byte_of_a_stored_image_is_noticed(position: int) -> None:
    changed = bytearray(SMALL["zip-stored"])
    changed[SMALL["zip-stored"].index(FILES["b.jpg"]) + position] ^= 1
    assert "'b.jpg' cannot be unpacked (its checksum" in refusal_of(bytes(changed))


def zip_data_spans(data: bytes) -> list[tuple[int, int]]:
    """The positions of the compressed bytes of each member."""
    spans = []
    with tempfile.TemporaryFile() as file:
        file.write(data)
        with zipfile.ZipFile(file) as source:
            for info in source.infolist():
                start = info.header_offset + 30 + len(info.filename)
                spans.append((start, start + info.compress_size))
    return spans


@settings(max_examples=200)
@given(st.data())
def test_any_damage_gives_one_sentence(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(SMALL)))
    whole = bytearray(SMALL[name])
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(whole) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8]))
        whole[position : position + len(patch)] = patch
    try:
        files_of(bytes(whole))
    except ArchiveError as refusal:
        assert "\n" not in explain(refusal)
        assert explain(refusal).encode()


def patched(data: bytes, signature: bytes, offset: int, patch: bytes) -> bytes:
    """``data`` with ``patch`` at ``offset`` in each record that begins with ``signature``."""
    starts = [at for at in range(len(data)) if data.startswith(signature, at)]
    for start in starts:
        data = data[: start + offset] + patch + data[start + offset + len(patch) :]
    return data


CENTRAL, LOCAL = b"PK\1\2", b"PK\3\4"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            patched(SMALL["zip-bzip2"], b"BZh9", 10, b"\xff" * 8), id="bzip2 raises a bare OSError"
        ),
        pytest.param(
            patched(SMALL["zip-lzma"], LOCAL, 40, b"\xff" * 8), id="lzma: corrupt properties"
        ),
    ],
)
def test_an_exception_of_a_library_is_a_damaged_archive(data: bytes) -> None:
    assert "'a.jpg' cannot be unpacked (" in refusal_of(data)


def test_a_place_that_no_file_can_have_is_a_damaged_archive() -> None:
    info = zipfile.ZipInfo("a.jpg")
    info.CRC, info.header_offset = 0, 2**64 - 1
    directory = b"".join(zip_records.central_directory([info], 30))
    assert "damaged or incomplete" in refusal_of(b"PK\3\4" + b"\0" * 26 + directory)


def test_headers_nested_without_end_are_a_damaged_archive() -> None:
    info = link("long", tarfile.GNUTYPE_LONGNAME)
    nested = info.tobuf(tarfile.GNU_FORMAT) * 2000
    assert "damaged or incomplete" in refusal_of(nested + tar_of(FILES))


def pax_tar(name: str, headers: dict[str, str]) -> bytes:
    info = tarfile.TarInfo(name)
    info.pax_headers = headers
    return tar_of({}, others=[info])


def test_a_sparse_file_without_its_map_is_a_damaged_archive() -> None:
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.jpg"}
    assert "damaged or incomplete" in refusal_of(pax_tar("a.jpg", sparse))


@pytest.mark.parametrize("format", TAR_FORMATS.values(), ids=TAR_FORMATS)
@given(st.data())
def test_a_changed_header_does_not_pass_for_the_end_of_a_tar(
    format: int, data: st.DataObject
) -> None:
    whole = bytearray(tar_of(FILES, format))
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    position = data.draw(st.sampled_from(headers[1:])) + data.draw(st.integers(0, 147))
    whole[position] ^= data.draw(st.integers(1, 255))
    assert refusal_of(bytes(whole))


@pytest.mark.parametrize("make", [zip_of, tar_of])
@pytest.mark.parametrize("name", ["../a.jpg", "x/\n.jpg"])
def test_a_name_that_could_lead_elsewhere_is_for_no_batch(make: type, name: str) -> None:
    ((known_as, reason),) = unusable_in(make({name: b"1"})).items()
    assert "unsafe name" in reason
    assert "\n" not in known_as + reason


@pytest.mark.parametrize("make", [zip_of, tar_of])
@pytest.mark.parametrize(
    ("names", "known"),
    [
        (["/manifest.csv", "a.jpg"], ["manifest.csv", "a.jpg"]),
        (["//x/a.jpg", "/x/b.jpg"], ["x/a.jpg", "x/b.jpg"]),
        (["images\\a.jpg"], ["images/a.jpg"]),
    ],
)
def test_names_that_have_only_one_reading_are_read(
    make: type, names: list[str], known: list[str], tmp_path: Path
) -> None:
    data = make([(name, name.encode()) for name in names])
    contents = extract(data, tmp_path)
    assert {name: contents.read(name) for name in contents.members} == {
        name: raw.encode() for name, raw in zip(known, names, strict=True)
    }


def test_a_name_that_is_not_utf8_is_spoken_of_in_words_that_are() -> None:
    ((name, reason),) = unusable_in(tar_of({"\udce9.jpg": b"1"}, tarfile.GNU_FORMAT)).items()
    assert "unsafe name" in reason
    assert (name + reason).encode()


@pytest.mark.parametrize("make", [zip_of, tar_of])
@pytest.mark.parametrize("names", [("a.jpg", "A.JPG/x/b.jpg"), ("a/x/b.jpg", "a")])
def test_a_file_and_a_folder_of_one_name_are_for_no_batch(
    make: type, names: tuple[str, str]
) -> None:
    unusable = unusable_in(make(dict.fromkeys(names, b"x")))
    assert unusable.keys() == set(names)
    assert all("a file and a folder" in why for why in unusable.values())


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_files_that_share_folders_are_no_files_in_a_file(make: type) -> None:
    assert not unusable_in(make(dict.fromkeys(["a/b/1.jpg", "a/b/2.jpg", "a/3.jpg"], b"x")))


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_a_name_too_long_for_a_file_is_not_normalised(make: type) -> None:
    name = "a" + "\u0316\u0301" * 15_000  # which takes a quarter of an hour
    begun = time.process_time()
    [why] = unusable_in(make({name: b"x"})).values()
    assert "60,001 bytes where 255 are allowed" in why
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("blocks", [0, 1])
def test_a_tar_without_all_of_its_end_is_read(blocks: int, tmp_path: Path) -> None:
    contents = extract(tar_of({"a.jpg": b"x"})[: 1024 + blocks * 512], tmp_path)
    assert list(contents.members) == ["a.jpg"]
    assert ["archive.tar-without-end" in remark.code for remark in contents.remarks] == (
        [] if blocks else [True]
    )


def test_a_sparse_file_of_too_many_pieces_is_refused_unread() -> None:
    bomb = CASES / "abuse" / "13-tar-sparse-map-15M.tar.gz"
    begun = time.process_time()
    assert "the headers of one file are too long" in refusal_of(bomb.read_bytes())
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "case",
    ["archives/10p-sparse-gnu", "corpora/53a-pax-sparse-size", "corpora/59a-tar-cut-in-sparse-map"],
)
def test_a_tar_with_a_sparse_file_may_end_anywhere(case: str, tmp_path: Path) -> None:
    data = gzip.decompress((CASES / f"{case}.tar.gz").read_bytes())
    for length in range(0, len(data) + 1, 512):
        try:
            extract(data[:length], tmp_path)
        except ArchiveError as error:
            assert "incomplete" in str(error) or length < 512


@pytest.mark.parametrize("length", [2048, 10_240])
def test_two_tars_are_refused_wherever_the_first_ends(length: int) -> None:
    data = tar_of({"a.jpg": b"x"})
    assert "two tar archives" in refusal_of(data[:length] + data)


def test_an_old_sparse_map_of_too_many_blocks_is_refused() -> None:
    info = tarfile.TarInfo("a.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    blocks = (b"\0" * 504 + b"\1" + b"\0" * 7) * 4000
    assert "the headers of one file are too long" in refusal_of(bytes(header) + blocks)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(*broken, id=name)
        for name, broken in BROKEN_ZIPS.items()
        if broken[0].startswith(b"PK")  # a file that is no ZIP is refused as such
    ],
)
def test_a_zip_with_a_broken_index_is_refused_before_it_is_unpacked(
    data: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "export").write_bytes(data)
    steps: list[int] = []
    with pytest.raises(ArchiveError) as refusal:
        archive.extract(tmp_path / "export", tmp_path / "store", steps.append)
    assert message in str(refusal.value)
    assert not steps
    assert not (tmp_path / "store").exists()


def test_the_overlap_bomb_is_refused_for_nothing_but_its_overlap() -> None:
    data = overlap_bomb(3, bytes(1000))
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        infos = source.infolist()
    assert len({(info.header_offset, info.file_size) for info in infos}) == 3
    for info in infos:
        start = info.header_offset + 30 + len(info.filename)
        content = zlib.decompress(data[start : start + info.compress_size], -zlib.MAX_WBITS)
        assert (len(content), zlib.crc32(content)) == (info.file_size, info.CRC)


def test_an_image_shorter_than_its_stated_size_is_refused() -> None:
    data = patched(zip_of({"a.jpg": b"image"}), CENTRAL, 24, struct.pack("<L", 9))
    assert "'a.jpg' cannot be unpacked (it is shorter than the archive says)" in refusal_of(data)


def test_a_size_that_does_not_fit_the_data_is_refused() -> None:
    data = zip_of(FILES, zipfile.ZIP_STORED)
    size = len(FILES["a.jpg"])
    assert refusal_of(data.replace(struct.pack("<L", size), struct.pack("<L", size + 5)))
    assert refusal_of(data.replace(struct.pack("<L", size), struct.pack("<L", size - 5)))


@pytest.mark.parametrize("position", [-8, -1], ids=["CRC", "length"])
def test_the_checksum_at_the_end_of_a_gzip_counts(position: int) -> None:
    data = bytearray(gzip.compress(tar_of(FILES)))
    data[position] ^= 1
    assert "damaged or incomplete" in refusal_of(bytes(data))


def test_an_archive_without_files_holds_nothing() -> None:
    assert files_of(zip_of({})) == {}
    assert files_of(gzip.compress(tar_of({}))) == {}
    assert files_of(zip_of({"empty.jpg": b""})) == {"empty.jpg": b""}


def test_a_full_disk_is_not_blamed_on_the_archive(tmp_path: Path) -> None:
    (tmp_path / "export").write_bytes(zip_of(FILES))
    with pytest.raises(OSError, match="No space left"):
        archive.extract(tmp_path / "export", Path("/dev/full"))


def test_a_member_that_is_too_large_is_not_read_into_memory(tmp_path: Path) -> None:
    member = Member(0, 2**31, 0, (2026, 1, 1, 0, 0, 0))
    with pytest.raises(ArchiveError, match=r"'manifest\.csv' is far too large"):
        Contents(tmp_path, {"manifest.csv": member}).read("manifest.csv")


@pytest.mark.parametrize(
    "bomb",
    [
        zip_of({"a.jpg": bytes(70_000_000)}),
        gzip.compress(tar_of({"a.jpg": b""}) + bytes(70_000_000)),
        sparse_tar("a.jpg", 2**40),
    ],
    ids=["zip", "behind the end of a tar.gz", "a sparse file's hole"],
)
def test_a_bomb_is_refused_before_it_fills_the_disk(bomb: bytes, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="more than 67,108,864 bytes"):
        extract(bomb, tmp_path)
    store = tmp_path / "store"
    assert not store.exists() or store.stat().st_size <= 67_108_864


MAKERS = pytest.mark.parametrize("make", [zip_of, tar_of])


@MAKERS
@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127 + "a"])
def test_a_name_may_be_as_long_as_file_systems_take_it(make: type, name: str) -> None:
    assert list(files_of(make({name: b"1"}))) == [name]
    (reason,) = unusable_in(make({name + "a": b"1"})).values()
    assert f"of {len(name.encode()) + 1} bytes" in reason


@MAKERS
def test_more_members_than_allowed_are_refused_folders_included(make: type, tmp_path: Path) -> None:
    files = {"a.jpg": b"1", "folder/": b"", "b.jpg": b"2"}
    if make is tar_of:
        del files["folder/"]
        files["._noise"] = b""
    extract(make(files), tmp_path, Limits(max_members=3))
    with pytest.raises(ArchiveError, match="more than 2 files"):
        extract(make(files), tmp_path, Limits(max_members=2))


@pytest.mark.parametrize("name", [".DS_Store", "a.jpg"])
def test_a_size_far_behind_the_end_of_a_tar_ends_the_reading(name: str) -> None:
    far = tarfile.TarInfo(name)
    far.size = 2**62
    assert "unpacks to more than" in refusal_of(far.tobuf(tarfile.GNU_FORMAT) + tar_of(FILES))
