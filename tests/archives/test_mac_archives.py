"""Archives of macOS's Archive Utility above 4 GiB or 65,535 files: no Zip64, overflowed numbers.

The images are holes in the archive, so that 4.5 GB take no room; where they have to be unpacked,
the holes are between them instead.
"""

import os
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

import pytest

from splitter.archives import extract as archive
from splitter.archives.members import ArchiveError
from splitter.archives.spliceable import copyable
from splitter.batches.splice import Plan, Uploaded, plan_batch
from splitter.manifest import partition as manifest
from tests.helpers.archives import index_of_file

pytestmark = pytest.mark.slow  # archives above 4 GiB

IMAGES = 450
SIZE = 10_000_000
HOLE = crc32(bytes(SIZE))
LOCAL_EXTRA = b"UX\x0c\x00" + bytes(12)
CENTRAL_EXTRA = b"UX\x08\x00" + bytes(8)
GIB = 1024**3
MIB = 1024**2

Members = Sequence[tuple[str, bytes | int | None]]
"""Names and contents: bytes, a number of zeros, or None for ``SIZE`` zeros."""


def export(folder: str = "", content: bytes | None = None) -> list[tuple[str, bytes | None]]:
    """Images, holes unless they have a content, and their manifest."""
    names = [f"{number:05}.jpg" for number in range(IMAGES)]
    text = "".join(f"{line}\n" for line in ["imageName", *names]).encode()
    return [*((folder + name, content) for name in names), (f"{folder}manifest.csv", text)]


def write(path: Path, members: Members, gap: int = 0) -> None:
    """An archive as Archive Utility writes it, but not compressed, so without descriptors."""
    entries = bytearray()
    with path.open("wb") as file:
        for name, content in members:
            offset = file.tell() % 2**32
            size = len(content) if isinstance(content, bytes) else content or SIZE
            crc = crc32(content) if isinstance(content, bytes) else HOLE
            low = size % 2**32
            fields = struct.pack("<5H3LH", 20, 0, 0, 0, 0x5A79, crc, low, low, len(name))
            file.write(b"PK\3\4" + fields + struct.pack("<H", len(LOCAL_EXTRA)))
            file.write(name.encode() + LOCAL_EXTRA)
            if isinstance(content, bytes):
                file.write(content)
            else:
                file.seek(size, os.SEEK_CUR)
            file.seek(gap, os.SEEK_CUR)
            entries += b"PK\1\2" + struct.pack("<H", 0x0315) + fields
            entries += struct.pack("<4H2L", len(CENTRAL_EXTRA), 0, 0, 0, 0o100644 << 16, offset) + (
                name.encode() + CENTRAL_EXTRA
            )
        start = file.tell() % 2**32
        count = len(members) % 2**16
        file.write(entries)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(entries), start, 0))


def test_an_archive_above_4_gib_can_be_spliced(tmp_path: Path) -> None:
    write(tmp_path / "export", export())
    with (tmp_path / "export").open("rb") as file:
        index = index_of_file(file)
        assert list(index.members) == [name for name, _ in export()]
        assert index.members["00449.jpg"].start > 4 * GIB
        is_copyable, reason = copyable(index, "")
        assert is_copyable
        assert "64 of 451 files" in reason.text
        parts = manifest.partition_export(index.members, index.read, "imageName", 2000)
        plan = plan_batch(parts.batches[0], index.members, (2026, 11, 24, 0, 0, 0))
        put_together(plan, tmp_path / "export", tmp_path / "part1.zip")
    with zipfile.ZipFile(tmp_path / "part1.zip") as made:
        assert made.namelist() == [name for name, _ in export()]
        for name in ("00000.jpg", "00428.jpg", "00449.jpg", "manifest.csv"):
            assert made.read(name) == index_content(name)


def index_content(name: str) -> bytes:
    content = dict(export())[name]
    return bytes(SIZE) if content is None else content


def put_together(plan: Plan, source: Path, path: Path) -> None:
    """The batch of a plan; holes stay holes."""
    with source.open("rb") as archive, path.open("wb") as batch:
        for part in plan.parts:
            for found in part.ranges if isinstance(part, Uploaded) else [part]:
                begin = batch.tell() - found.start
                for start, data in stretches(archive.fileno(), found.start, found.end):
                    batch.seek(begin + start)
                    batch.write(data)
                batch.seek(begin + found.end)
            if isinstance(part, Uploaded):
                batch.write(part.end)


def stretches(file: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The data of a range of a file, without its holes."""
    while start < end:
        try:
            start = os.lseek(file, start, os.SEEK_DATA)
        except OSError:  # there is none behind it
            return
        if start < end:
            length = min(os.lseek(file, start, os.SEEK_HOLE), end, start + MIB) - start
            yield start, os.pread(file, length, start)
            start += length


@pytest.mark.parametrize("folder", ["", "My Export/"])
def test_an_archive_above_4_gib_is_extracted(folder: str, tmp_path: Path) -> None:
    members = export(folder, b"image")
    noise: Members = [(f"__MACOSX/{folder}._{number}.jpg", b"fork") for number in range(3)]
    write(tmp_path / "export", [*members, *noise], gap=SIZE)
    assert (tmp_path / "export").stat().st_size > 4 * GIB
    contents = archive.extract(tmp_path / "export", tmp_path / "store")
    assert list(contents.members) == [name for name, _ in members]
    assert all(contents.read(name) == content for name, content in members)
    parts = manifest.partition_export(contents.members, contents.read, "imageName", 100)
    assert parts.folder == folder
    assert len(parts.batches) == 5


def test_more_files_than_the_format_counts(tmp_path: Path) -> None:
    members = [(f"{number:05}.jpg", b"") for number in range(66_000)]
    write(tmp_path / "export", members)
    with (tmp_path / "export").open("rb") as file:
        assert list(index_of_file(file).members) == [name for name, _ in members]


@pytest.mark.parametrize(
    "films", [{0: 5 * GIB}, {3: 4 * GIB - 5, 7: 4 * GIB}, {100: 9 * GIB, 101: 4 * GIB + 1}]
)
def test_a_file_above_4_gib_is_refused(films: dict[int, int], tmp_path: Path) -> None:
    members: list[tuple[str, bytes | int | None]] = [*export("", b"image")]
    for at, size in sorted(films.items(), reverse=True):
        members.insert(at, (f"{at}.mov", size))
    write(tmp_path / "export", members)
    with pytest.raises(ArchiveError, match="holds a file above 4 GiB"):
        archive.extract(tmp_path / "export", tmp_path / "store")


def test_offsets_that_do_not_lead_to_files_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "export"
    write(path, export())
    with path.open("r+b") as file:
        file.seek(index_of_file(file).members["manifest.csv"].start)
        file.write(bytes(4))
    with path.open("rb") as file, pytest.raises(ArchiveError, match="are not where"):
        index_of_file(file)


def test_offsets_that_jump_too_often_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "export"
    members = export()
    write(path, members)
    data = bytearray()
    with path.open("rb") as file:
        start = index_of_file(file).members["manifest.csv"].end
        file.seek(start)
        data += file.read()
    entries = [at for at in range(len(data)) if data.startswith(b"PK\1\2", at)]
    for number, at in enumerate(entries):
        struct.pack_into("<L", data, at + 42, 2**31 - number)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)
    with path.open("rb") as file, pytest.raises(ArchiveError, match="damaged, or holds a file"):
        index_of_file(file)
