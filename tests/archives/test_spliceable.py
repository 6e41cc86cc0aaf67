import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from splitter.archives import zip_records
from splitter.archives.damage import DAMAGE
from splitter.archives.spliceable import SAMPLE, UNPACKED, copyable, sample
from splitter.archives.zip_data import UNPACKERS
from splitter.archives.zip_index import ZipIndex
from splitter.archives.zip_records import DEFLATE64, XZ, ZSTANDARD
from tests.helpers.archives import (
    FILES,
    STREAMED,
    Unseekable,
    index_of,
    set_on,
    with_directory,
    zip_of,
)
from tests.helpers.other_programs import accepted

PLAIN = zip_of(FILES)
DESCRIPTOR = STREAMED.index(b"PK\7\x08")


def why_not(data: bytes) -> str | None:
    """The reason why the archive is not copied, or None."""
    is_copyable, reason = copyable(index_of(data), "")
    return None if is_copyable else reason.text


def changed(data: bytes, position: int, value: bytes) -> bytes:
    return data[:position] + value + data[position + len(value) :]


@pytest.mark.parametrize("data", [PLAIN, STREAMED, zip_of(FILES, zipfile.ZIP_STORED)])
def test_an_archive_that_agrees_with_itself_passes(data: bytes) -> None:
    assert why_not(data) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed(PLAIN, 4, b"\x3f\0"), "a later version of ZIP, 6.3"),
        (changed(PLAIN, 14, b"\0\0\0\0"), "the checksum in front of the data"),
        (changed(PLAIN, 18, b"\1\0\0\0"), "the size in front of the data"),
        (changed(PLAIN, 22, b"\1\0\0\0"), "the size in front of the data"),
        (changed(PLAIN, 8, b"\0\0"), "the compression method"),
        (changed(PLAIN, 6, b"\x08\0"), "a flag"),
        (changed(PLAIN, 6, b"\0\x08"), "a flag"),
        (changed(PLAIN, 30, b"A"), "the name"),
        (changed(STREAMED, 6, b"\0\0"), "a flag"),
        (changed(STREAMED, DESCRIPTOR + 4, b"\0"), "after the data"),
        (changed(STREAMED, DESCRIPTOR + 8, b"\0"), "after the data"),
        (changed(STREAMED, DESCRIPTOR + 12, b"\1"), "after the data"),
        (changed(STREAMED, STREAMED.rindex(b"PK\7\x08") + 4, b"\0\0\0"), "after the data"),
        (changed(PLAIN, PLAIN.index(b"a.jpg") + 8, b"\xff"), "cannot be unpacked"),
        (with_directory(PLAIN, lambda infos: infos.pop(1)), "bytes that belong to no file"),
    ],
)
def test_an_archive_that_disagrees_with_itself_does_not_pass(data: bytes, words: str) -> None:
    assert words in str(why_not(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            zip_of(FILES, zipfile.ZIP_STORED, stream=Unseekable()),
            "'a.jpg' is stored without its size",
        ),
        (zip_of({"./a.jpg": b"a"}), "'a.jpg' is called './a.jpg' inside it"),
        (zip_of({"a.jpg": b"a"}, zipfile.ZIP_LZMA), "'a.jpg' is compressed by LZMA"),
        (zip_of({"e\u0301.jpg": b"a"}), "is not in Unicode's composed form"),
        (
            with_directory(zip_of({"é.jpg": b"a"}), set_on(0, flag_bits=0, orig_filename="é.jpg")),
            "is not marked as UTF-8",
        ),
        (with_directory(STREAMED, set_on(0, flag_bits=0x48)), "flags that some programs refuse"),
        (
            with_directory(
                zip_of({"a.jpg": b"a", "b.jpg": bytes(66_000), "c.jpg": b"c"}, zipfile.ZIP_STORED),
                lambda infos: infos.pop(1),
            ),
            "after the data of 'a.jpg' are bytes that belong to no file",
        ),
    ],
)
def test_an_obstacle_to_a_copy_is_named(data: bytes, reason: str) -> None:
    assert reason in str(why_not(data))


def test_a_field_that_is_longer_than_the_extra_field_is_not_copied() -> None:
    info = zipfile.ZipInfo("a.jpg")
    info.extra = struct.pack("<2H", 0xCAFE, 8) + b"ab"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr(info, b"x")
    assert (
        why_not(buffer.getvalue())
        == "the extra field in front of the data of 'a.jpg' is longer than its room"
    )


def test_a_wrong_checksum_in_the_directory_is_seen_by_unpacking_it() -> None:
    data = with_directory(STREAMED, set_on(2, CRC=7))
    assert "manifest.csv" in str(why_not(data))


def test_of_many_files_both_ends_of_each_run_are_looked_at() -> None:
    names = [f"{number:05}.jpg" for number in (*range(100, 300), *range(50), *range(300, 400))]
    index = index_of(zip_of(dict.fromkeys(names, b"image")))
    chosen = sample(list(index.members.values()))
    assert {0, 199, 200, 349} <= set(chosen)
    assert len(chosen) <= SAMPLE
    assert len(chosen) > SAMPLE - 8
    assert max(after - before for before, after in pairwise(chosen)) < 20


def test_of_a_shuffled_archive_no_more_are_looked_at() -> None:
    names = [f"{number * 7919 % 1000:05}.jpg" for number in range(1000)]
    data = zip_of(dict.fromkeys(names, b"image"))
    asked: list[int] = []

    def read(start: int, length: int) -> bytes:
        asked.append(length)
        return data[start : start + length]

    index = ZipIndex(read, len(data))
    assert len(sample(list(index.members.values()))) <= SAMPLE
    asked.clear()
    assert copyable(index, "")[0]
    assert len(asked) <= SAMPLE + 1 + UNPACKED


@pytest.mark.parametrize("position", range(0, 60, 3))
def test_a_deflated_stream_that_is_cut_off_is_refused(position: int) -> None:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    data = compressor.compress(b"herbarium" * 20 + bytes(range(100))) + compressor.flush()
    cut = data[: len(data) * position // 60]
    with pytest.raises(DAMAGE):
        list(UNPACKERS[zipfile.ZIP_DEFLATED]([cut], 10**6))


@pytest.mark.parametrize("method", [DEFLATE64, XZ, ZSTANDARD, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_no_decompressor_takes_nonsense(method: int) -> None:
    nonsense = struct.pack("<8L", *range(2**31, 2**31 + 8))
    with pytest.raises((*DAMAGE, OSError)):
        list(UNPACKERS[method]([nonsense], 10**6))


def member(
    name: bytes = b"a.jpg",
    data: bytes = b"image",
    flags: int = 0,
    sizes: tuple[int, int] | None = None,
    local: Callable[[bytes], bytes] = bytes,
    extra: bytes = b"",
    behind: bytes = b"",
) -> bytes:
    """A ZIP of one stored or, with data descriptor, deflated member, and a manifest.

    Args:
        sizes: in the local header.
        local: changes the local header.
    """
    method, packed = 0, data
    if flags & zip_records.DATA_DESCRIPTOR:
        compressor = zlib.compressobj(wbits=-15)
        method, packed = 8, compressor.compress(data) + compressor.flush()
    crc = zlib.crc32(data)
    fields = (20, flags, method, 0, 0x21, crc, *(sizes or (len(packed), len(data))), len(name))
    header = local(zip_records.LOCAL_FILE_HEADER.pack(b"PK\3\4", *fields, len(extra)))
    info = zip_records.stored_member(name.decode(), len(data), crc, (1980, 1, 1, 0, 0, 0))
    info.compress_type, info.compress_size, info.flag_bits = method, len(packed), flags
    body = header + name + extra + packed + behind
    manifest = b"imageName\na.jpg\n"
    last = zip_records.stored_member(
        "manifest.csv", len(manifest), zlib.crc32(manifest), (1980, 1, 1, 0, 0, 0)
    )
    last.header_offset = len(body)
    body += zip_records.local_file_header(last) + manifest
    return body + b"".join(zip_records.central_directory([info, last], len(body)))


def descriptor(data: bytes = b"image", form: str = "<4s3L", packed: int = 7) -> bytes:
    return struct.pack(form, b"PK\7\x08", zlib.crc32(data), packed, len(data))


ZIP64 = struct.pack("<2H2Q", 1, 16, 5, 5)
STREAM = zip_records.DATA_DESCRIPTOR
ODD = {
    "a Zip64 field with other sizes": (
        member(extra=struct.pack("<2H2Q", 1, 16, 0, 0)),
        "the size in front of the data",
    ),
    "sizes of 64 bits behind the data": (
        member(
            flags=STREAM,
            sizes=(2**32 - 1, 2**32 - 1),
            extra=struct.pack("<2H2Q", 1, 16, 0, 0),
            behind=descriptor(form="<4sL2Q"),
        ),
        "have 64 bits",
    ),
    "sizes of 64 bits that nothing announces": (
        member(flags=STREAM, behind=descriptor(form="<4sL2Q")),
        "the checksum or the size after",
    ),
    "bytes before the descriptor": (
        member(flags=STREAM, behind=b"\0\0" + descriptor()),
        "the checksum or the size after",
    ),
    "no descriptor": (member(flags=STREAM), "the checksum or the size after"),
    "bytes behind a stored file": (member(behind=b"\0"), "bytes that belong to no file"),
    "another name in an extra field": (
        member(extra=struct.pack("<2HBL", 0x7075, 10, 1, zlib.crc32(b"a.jpg")) + b"b.jpg"),
        "the name",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_members_that_a_strict_program_refuses_are_not_copied(name: str) -> None:
    data, words = ODD[name]
    assert words in str(why_not(data))


@pytest.mark.parametrize(
    "data",
    [
        member(),
        member(extra=ZIP64),
        member(flags=STREAM, behind=descriptor()),
        member(flags=STREAM, sizes=(0, 0), behind=descriptor()[4:]),
    ],
)
def test_members_that_every_program_reads_are_copied(data: bytes, tmp_path: Path) -> None:
    assert why_not(data) is None
    path = tmp_path / "export.zip"
    path.write_bytes(data)
    assert list(accepted(path))
