import os
import shutil
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

import pytest

from splitter.archives import zip_records
from tests.helpers.archives import FILES, Unseekable, zip_of

FIXTURES = sorted((Path(__file__).parent.parent / "fixtures").glob("4*.zip"))
GIB = 1024**3
MAX = 0xFFFFFFFF
WIDE_SIZES = {
    "small.jpg": 5,
    "one byte below the limit": MAX - 1,
    "behind 4 GiB.jpg": 5,
    "5 GiB": 5 * GIB,
    "behind 9 GiB.jpg": 5,
    "at the limit": MAX,
}
PRINT = {
    "unzip": ["unzip", "-p", "wide.zip", "behind 9 GiB.jpg"],
    "7z": ["7z", "x", "-so", "wide.zip", "behind 9 GiB.jpg"],
    "bsdtar": ["bsdtar", "-xOf", "wide.zip", "behind 9 GiB.jpg"],
}


def member(name: str, size: int, offset: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.file_size = info.compress_size = size
    info.header_offset = offset
    info.CRC = zlib.crc32(b"image")
    return info


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ZIP of 17 GiB whose large members are holes in the file."""
    path = tmp_path_factory.mktemp("wide") / "wide.zip"
    members = []
    with path.open("wb") as file:
        for name, size in WIDE_SIZES.items():
            members.append(member(name, size, file.tell()))
            file.write(zip_records.local_file_header(members[-1]))
            if size == 5:
                file.write(b"image")
            else:
                file.seek(size, os.SEEK_CUR)
        file.writelines(zip_records.central_directory(members, file.tell()))
    return path


def test_sizes_and_offsets_beyond_4_gib_are_read_right(wide: Path) -> None:
    with zipfile.ZipFile(wide) as found:
        assert {info.filename: info.file_size for info in found.infolist()} == WIDE_SIZES
        for name, size in WIDE_SIZES.items():
            with found.open(name) as content:  # checks the header in front of the content
                assert content.read(5) == (b"image" if size == 5 else b"\0" * 5)


@pytest.mark.parametrize("tool", PRINT)
def test_other_programs_find_a_file_beyond_4_gib(tool: str, wide: Path) -> None:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    printed = subprocess.run(PRINT[tool], cwd=wide.parent, check=True, capture_output=True)
    assert printed.stdout == b"image"


def test_zip64_appears_only_where_it_is_needed() -> None:
    plain, wide = (zip_records.local_file_header(member("a", size)) for size in (MAX - 1, MAX))
    assert (len(plain), len(wide)) == (31, 51)
    assert b"PK\6\6" not in b"".join(zip_records.central_directory([], MAX - 1))
    assert b"PK\6\6" in b"".join(zip_records.central_directory([], MAX))
    few, many = ([member("a", 5)] * count for count in (0xFFFE, 0xFFFF))
    assert b"PK\6\6" not in b"".join(zip_records.central_directory(few, 0))
    assert b"PK\6\6" in b"".join(zip_records.central_directory(many, 0))


@pytest.mark.parametrize(
    "data",
    [
        *(pytest.param(path.read_bytes(), id=path.name[:2]) for path in FIXTURES),
        pytest.param(zip_of(FILES, stream=Unseekable()), id="streamed"),
        pytest.param(zip_of({"标本.jpg": b"1", "é/ü.jpg": b"2"}), id="UTF-8 names"),
    ],
)
def test_a_central_directory_written_anew_equals_the_old_one(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "old.zip").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "old.zip") as old:
        start = old.start_dir
        anew = b"".join(zip_records.central_directory(old.infolist(), start))
        (tmp_path / "new.zip").write_bytes(data[:start] + anew)
        with zipfile.ZipFile(tmp_path / "new.zip") as new:
            assert new.testzip() is None
            assert [fields(info) for info in new.infolist()] == [
                fields(info) for info in old.infolist()
            ]


def fields(info: zipfile.ZipInfo) -> list[object]:
    left_out = ("extra", "comment", "internal_attr")
    names = (name for name in zipfile.ZipInfo.__slots__ if name[0] != "_" and name not in left_out)
    return [getattr(info, name) for name in names]


def test_a_name_in_the_old_encoding_is_written_as_it_was() -> None:
    info = zipfile.ZipInfo("Åland.jpg")
    assert zip_records.encoded_name(info) == b"\x8fland.jpg"
    info.flag_bits |= zip_records.UTF8_NAME
    assert zip_records.encoded_name(info) == "Åland.jpg".encode()


@pytest.mark.parametrize("name", ["a.jpg", "標本/ü.jpg"])
def test_a_stored_member_is_a_plain_file_that_zipfile_reads(name: str, tmp_path: Path) -> None:
    modified = (2026, 11, 24, 6, 43, 56)
    info = zip_records.stored_member(name, 5, zlib.crc32(b"image"), modified)
    data = zip_records.local_file_header(info) + b"image"
    path = tmp_path / "one.zip"
    path.write_bytes(data + b"".join(zip_records.central_directory([info], len(data))))
    with zipfile.ZipFile(path) as archive:
        (found,) = archive.infolist()
        assert archive.read(found) == b"image"
    assert (found.filename, found.date_time) == (name, modified)
    assert (found.create_system, found.external_attr >> 16) == (3, 0o100644)
    assert found.compress_type == zipfile.ZIP_STORED


def test_what_no_batch_needs_is_not_written() -> None:
    """Some programs refuse a comment or an extra field that others wrote."""
    info = member("a.jpg", 5)
    plain = [*zip_records.central_directory([info], 0)]
    info.extra, info.comment, info.internal_attr = struct.pack("<2HQ", 1, 8, 5), b"comment", 1
    assert [*zip_records.central_directory([info], 0)] == plain


@pytest.mark.parametrize(
    ("method", "size", "version"),
    [
        (zipfile.ZIP_STORED, 5, 10),
        (zipfile.ZIP_DEFLATED, 5, 20),
        (zipfile.ZIP_DEFLATED, MAX, 45),
        (zipfile.ZIP_LZMA, 5, 63),
    ],
)
def test_the_version_needed_is_that_of_the_method_and_the_size(
    method: int, size: int, version: int
) -> None:
    info = member("a.jpg", size)
    info.compress_type, info.extract_version = method, 99
    (record, *_) = zip_records.central_directory([info], 0)
    assert struct.unpack_from("<H", record, 6) == (version,)
    assert struct.unpack_from("<H", zip_records.local_file_header(info), 4) == (version,)
