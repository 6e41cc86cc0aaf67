import io
import struct
import zipfile
import zlib
from itertools import pairwise

import pytest

from splitter.archives import zip_sample
from splitter.archives.damage import DAMAGE
from splitter.archives.zip_data import unpacked
from splitter.archives.zip_records import DEFLATE64, XZ, ZSTANDARD
from splitter.archives.zip_sample import SAMPLE, disagreement, sample
from tests.helpers.archives import (
    FILES,
    STREAMED,
    Unseekable,
    index_of,
    set_on,
    with_directory,
    zip_of,
)

PLAIN = zip_of(FILES)
DESCRIPTOR = STREAMED.index(b"PK\7\x08")


def looked_at(data: bytes) -> tuple[str | None, str]:
    index = index_of(data)
    assert index.why_not_spliceable("") is None
    return disagreement(index, lambda start, length: data[start : start + length])


def changed(data: bytes, position: int, value: bytes) -> bytes:
    return data[:position] + value + data[position + len(value) :]


@pytest.mark.parametrize("data", [PLAIN, STREAMED, zip_of(FILES, zipfile.ZIP_STORED)])
def test_an_archive_that_agrees_with_itself_passes(data: bytes) -> None:
    what, looked = looked_at(data)
    assert what is None
    assert looked == "compared the headers of all 3 files, unpacked 3"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (changed(PLAIN, 4, b"\x3f\0"), "the version of ZIP"),
        (changed(PLAIN, 14, b"\0\0\0\0"), "the checksum or the size"),
        (changed(PLAIN, 18, b"\1\0\0\0"), "the checksum or the size"),
        (changed(PLAIN, 22, b"\1\0\0\0"), "the checksum or the size"),
        (changed(PLAIN, 8, b"\0\0"), "the compression method"),
        (changed(PLAIN, 6, b"\x08\0"), "a flag"),
        (changed(PLAIN, 6, b"\0\x08"), "a flag"),
        (changed(PLAIN, 30, b"A"), "the name"),
        (changed(STREAMED, 6, b"\0\0"), "a flag"),
        (changed(STREAMED, DESCRIPTOR + 4, b"\0"), "behind the data"),
        (changed(STREAMED, DESCRIPTOR + 8, b"\0"), "behind the data"),
        (changed(STREAMED, DESCRIPTOR + 12, b"\1"), "behind the data"),
        (changed(STREAMED, STREAMED.rindex(b"PK\7\x08") + 4, b"\0\0\0"), "behind the data"),
        (changed(PLAIN, PLAIN.index(b"a.jpg") + 8, b"\xff"), "cannot be unpacked"),
        (with_directory(PLAIN, lambda infos: infos.pop(1)), "bytes that belong to no file"),
    ],
)
def test_an_archive_that_disagrees_with_itself_does_not(data: bytes, said: str) -> None:
    what, _ = looked_at(data)
    assert what is not None
    assert said in what


def test_a_field_that_is_longer_than_the_extra_field_is_not_copied() -> None:
    info = zipfile.ZipInfo("a.jpg")
    info.extra = struct.pack("<2H", 0xCAFE, 8) + b"ab"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr(info, b"x")
    what, _ = looked_at(buffer.getvalue())
    assert what == "the extra field in front of the data of 'a.jpg' is longer than its room"


def test_a_wrong_checksum_in_the_directory_is_seen_by_unpacking_it() -> None:
    data = with_directory(STREAMED, set_on(2, CRC=7))
    assert "manifest.csv" in str(looked_at(data)[0])


def test_stored_files_with_their_size_behind_them_are_not_copied() -> None:
    data = zip_of(FILES, zipfile.ZIP_STORED, stream=Unseekable())
    assert "stored without its size" in str(index_of(data).why_not_spliceable(""))


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
    index = index_of(data)
    assert len(sample(list(index.members.values()))) <= SAMPLE
    asked: list[int] = []

    def read(start: int, length: int) -> bytes:
        asked.append(length)
        return data[start : start + length]

    assert disagreement(index, read)[0] is None
    assert len(asked) <= SAMPLE + 1 + zip_sample.UNPACKED


@pytest.mark.parametrize("position", range(0, 60, 3))
def test_a_deflated_stream_that_is_cut_off_is_refused(position: int) -> None:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    data = compressor.compress(b"herbarium" * 20 + bytes(range(100))) + compressor.flush()
    cut = data[: len(data) * position // 60]
    with pytest.raises(DAMAGE):
        list(unpacked(zipfile.ZIP_DEFLATED, lambda _: iter([cut]), 10**6))


@pytest.mark.parametrize("method", [DEFLATE64, XZ, ZSTANDARD, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_no_decompressor_takes_nonsense(method: int) -> None:
    nonsense = struct.pack("<8L", *range(2**31, 2**31 + 8))
    with pytest.raises((*DAMAGE, OSError)):
        list(unpacked(method, lambda _: iter([nonsense]), 10**6))
