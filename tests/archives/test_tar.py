"""Tars as every program writes them: read once, checked, and refused with the true cause."""

import bz2
import gzip
import io
import lzma
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitter.archives import extract as archive
from splitter.archives import signatures, streams
from splitter.archives.extract import Contents
from splitter.archives.members import ArchiveError, Limits
from splitter.archives.zstandard import zstd
from tests.helpers.archives import FILES, identified, tar_of, zip_of

TAR = tar_of(FILES)
GZIP = gzip.compress(TAR, mtime=0)

COMPRESS = [gzip.compress, bz2.compress, lzma.compress, zstd.compress]
ODD = [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]


def unpacked(data: bytes, tmp_path: Path, limits: Limits | None = None) -> Contents:
    path = tmp_path / "export"
    path.write_bytes(data)
    return archive.extract(path, tmp_path / "store", limits=limits or Limits())


def content(contents: Contents) -> dict[str, bytes]:
    return {name: contents.read(name) for name in contents.members}


def entry(name: str, kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


@pytest.mark.parametrize(
    "compress",
    COMPRESS,
    ids=lambda f: f.__module__,
)
def test_a_tar_is_read_under_any_compression(
    compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    assert content(unpacked(compress(TAR), tmp_path)) == FILES


@pytest.mark.parametrize("compress", COMPRESS)
def test_every_stream_of_a_compressed_file_is_read(
    compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    data = compress(TAR[:100]) + compress(TAR[100:1500]) + compress(TAR[1500:])
    assert content(unpacked(data, tmp_path)) == FILES


def test_skippable_frames_of_zstandard_are_skipped(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
    data = skipped + zstd.compress(TAR[:1500]) + skipped + zstd.compress(TAR[1500:])
    assert content(unpacked(data, tmp_path)) == FILES


@pytest.mark.parametrize("compress", COMPRESS)
def test_a_compressed_file_that_was_cut_off_is_refused(
    compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    data = compress(TAR)
    for length in (len(data) // 2, len(data) - 1):
        with pytest.raises(ArchiveError, match="damaged or incomplete"):
            unpacked(data[:length], tmp_path)


def test_the_file_within_which_a_tar_ends_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"'b\.jpg' cannot be unpacked \(unexpected end"):
        unpacked(TAR[: TAR.index(FILES["b.jpg"]) + 600], tmp_path)


@pytest.mark.parametrize("compress", COMPRESS)
def test_a_compressed_file_that_holds_no_tar_is_refused_by_its_first_bytes(
    compress: Callable[[bytes], bytes],
) -> None:
    assert identified(compress(TAR)) == identified(compress(TAR)[:40])
    with pytest.raises(ArchiveError, match=r"file that holds a ZIP, not a ZIP or tar"):
        identified(compress(zip_of(FILES))[: signatures.START])


@given(st.integers(0, len(GZIP) - 1), st.integers(0, 7))
def test_a_flipped_bit_is_refused_where_zlib_refuses_it(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    damaged = bytearray(GZIP)
    damaged[position] ^= 1 << bit
    try:
        expected = gzip.decompress(bytes(damaged))
    except (OSError, EOFError, zlib.error):
        expected = None
    try:
        found = content(unpacked(bytes(damaged), tmp_path_factory.mktemp("bit")))
    except ArchiveError:
        return
    assert expected == TAR
    assert found == FILES


@pytest.mark.parametrize("start", [100, 108, 116, 329, 337])
@pytest.mark.parametrize("name", FILES)
def test_odd_numbers_that_no_batch_needs_are_ignored(name: str, start: int, tmp_path: Path) -> None:
    """Owner and device numbers of ordinary files, in which old programs leave anything."""
    data = bytearray(tar_of(FILES, tarfile.USTAR_FORMAT))
    header = data.index(name.encode() + bytes(20))
    data[header + start : header + start + 8] = b"\xf3odd\xff \x019"
    data[header + 148 : header + 156] = b" " * 8
    data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    assert identified(bytes(data)) == "tar"
    contents = unpacked(bytes(data), tmp_path)
    assert content(contents) == FILES
    assert contents.members[name].modified == (2023, 11, 14, 22, 13, 20)


def test_bytes_after_the_end_of_a_gzip_are_ignored_with_a_remark(tmp_path: Path) -> None:
    contents = unpacked(GZIP + b"\r\n", tmp_path)
    assert content(contents) == FILES
    assert [*map(str, contents.remarks)] == [
        "The archive is followed by 2 bytes; a transfer may have added that. [archive.bytes-behind]"
    ]
    assert not unpacked(GZIP + bytes(700), tmp_path).remarks


def test_bytes_after_the_end_of_a_tar_are_ignored_with_a_remark(tmp_path: Path) -> None:
    contents = unpacked(gzip.compress(TAR + b"Thank you!"), tmp_path)
    assert content(contents) == FILES
    assert "The archive is followed by 5,642 bytes" in contents.remarks[0].text


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_two_tars_one_behind_the_other_are_not_cut_silently(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    with pytest.raises(ArchiveError, match="two tar archives, one after the other"):
        unpacked(pack(TAR + tar_of({"c.jpg": b"c"})), tmp_path)


def test_a_hard_link_is_the_file_that_it_names(tmp_path: Path) -> None:
    links = [entry("c.jpg", tarfile.LNKTYPE, "./a.jpg"), entry("d.jpg", tarfile.LNKTYPE, "c.jpg")]
    contents = unpacked(tar_of(FILES, others=links), tmp_path)
    a = FILES["a.jpg"]
    assert content(contents) == {**FILES, "c.jpg": a, "d.jpg": a}
    assert contents.store.stat().st_size == sum(map(len, FILES.values()))


@pytest.mark.parametrize("target", ["c.jpg", "later.jpg", "../a.jpg", ""])
def test_a_hard_link_to_no_earlier_file_is_unusable(target: str, tmp_path: Path) -> None:
    contents = unpacked(tar_of(FILES, others=[entry("c.jpg", tarfile.LNKTYPE, target)]), tmp_path)
    assert content(contents) == FILES
    assert "hard link" in contents.unusable["c.jpg"].text


def test_a_hard_link_to_one_of_two_files_of_a_name_is_unusable(tmp_path: Path) -> None:
    files = [("a.jpg", b"first"), ("./a.jpg", b"second"), ("b.jpg", b"b")]
    link = entry("c.jpg", tarfile.LNKTYPE, "a.jpg")
    contents = unpacked(tar_of(files, others=[link]), tmp_path)
    assert content(contents) == {"b.jpg": b"b"}
    assert set(contents.unusable) == {"a.jpg", "c.jpg"}


def test_hard_links_count_towards_the_unpacked_size(tmp_path: Path) -> None:
    files = {"a.jpg": bytes(1024 * 1024)}
    links = [entry(f"{number}.jpg", tarfile.LNKTYPE, "a.jpg") for number in range(70)]
    with pytest.raises(ArchiveError, match="unpacks to more than"):
        unpacked(gzip.compress(tar_of(files, others=links)), tmp_path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_a_symbolic_link_or_device_is_unusable_and_hinders_no_other(
    kind: bytes, tmp_path: Path
) -> None:
    contents = unpacked(tar_of(FILES, others=[entry("c.jpg", kind, "a.jpg")]), tmp_path)
    assert content(contents) == FILES
    assert set(contents.unusable) == {"c.jpg"}


@pytest.mark.parametrize("kind", [b"V", b"D", tarfile.DIRTYPE])
def test_volume_labels_listings_and_folders_are_ignored(kind: bytes, tmp_path: Path) -> None:
    contents = unpacked(tar_of(FILES, others=[entry("Herbarium 7", kind)]), tmp_path)
    assert content(contents) == FILES
    assert not contents.unusable


def test_a_volume_of_a_split_tar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="one volume of several"):
        unpacked(tar_of(FILES, others=[entry("b.jpg", b"M")]), tmp_path)


def with_attributes(length: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.pax_headers = {"SCHILY.xattr.com.apple.ResourceFork": "r" * length}
            file.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def test_attributes_may_be_as_long_as_a_resource_fork(tmp_path: Path) -> None:
    assert content(unpacked(with_attributes(1_000_000), tmp_path)) == FILES
    with pytest.raises(ArchiveError, match="the headers of one file are too long"):
        unpacked(with_attributes(2_000_000), tmp_path)


def test_a_global_header_is_short(tmp_path: Path) -> None:
    header = tarfile.TarInfo.create_pax_global_header({"comment": "x" * 70_000})
    with pytest.raises(ArchiveError, match="bytes of attributes for all files"):
        unpacked(header + TAR, tmp_path)


@pytest.mark.parametrize(("count", "length"), [(1, 5), (2, 1_000_000), (1, -600), (1, 2**40)])
def test_headers_before_one_file_are_not_all_held_in_memory(
    count: int, length: int, tmp_path: Path
) -> None:
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, length
    name = long.tobuf(tarfile.GNU_FORMAT) + b"z.jpg".ljust(
        -(-min(length, 2**20) // 512) * 512, b"\0"
    )
    data = name * count + TAR
    if length == 5:
        assert "z.jpg" in unpacked(data, tmp_path).members
        return
    with pytest.raises(ArchiveError, match="the headers of one file are too long"):
        unpacked(data, tmp_path)


def test_many_small_streams_are_read_without_heaping_up(tmp_path: Path) -> None:
    data = TAR + bytes(8 * 1024 * 1024)
    step = 4096
    small = b"".join(gzip.compress(data[at : at + step], 0) for at in range(0, len(data), step))
    file, total = io.BytesIO(small), 0
    for piece in streams.decompressed(file, "gz", []):
        total += len(piece)
        # The reader is never more than two reads ahead of the unpacked bytes.
        assert file.tell() <= total * 1.1 + 2 * streams.CHUNK
    assert total == len(data)


@pytest.mark.parametrize("compress", COMPRESS)
def test_a_bomb_ends_at_the_limit(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    bomb = compress(tar_of({"a.jpg": bytes(80 * 1024 * 1024)}))
    with pytest.raises(ArchiveError, match="unpacks to more than"):
        unpacked(bomb, tmp_path)
    assert (tmp_path / "store").stat().st_size <= 64 * 1024 * 1024


def test_an_xz_that_asks_for_gigabytes_of_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1024**3}]
    with pytest.raises(ArchiveError, match="compressed so strongly that it cannot be"):
        unpacked(lzma.compress(TAR, filters=filters), tmp_path)


def test_a_name_in_gnu_tars_own_format_may_be_absolute(tmp_path: Path) -> None:
    contents = unpacked(tar_of({**FILES, "/c.jpg": b"c"}, tarfile.GNU_FORMAT), tmp_path)
    assert content(contents) == {**FILES, "c.jpg": b"c"}


def test_times_in_the_headers_of_gnu_tar_are_no_part_of_a_name(tmp_path: Path) -> None:
    data = bytearray(tar_of(FILES, tarfile.GNU_FORMAT))
    for at in (data.index(name.encode() + bytes(20)) for name in FILES):  # as its option -g writes
        data[at + 345 : at + 369] = b"15301522271\0" * 2
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    assert content(unpacked(bytes(data), tmp_path)) == FILES


def pax_header(records: bytes) -> bytes:
    return entry("pax", tarfile.XHDTYPE, size=len(records)).tobuf() + records.ljust(
        -(-len(records) // 512) * 512, b"\0"
    )


@pytest.mark.parametrize(
    "record",
    [
        b"1000000 path=" + b"9" * 999_986 + b"\n",
        b"5 ab\n" * 200_000 + b"9 a=bcd\n",
        b"1" * 1_000_000,
        b"0 a=b",
    ],
    ids=["digits", "no equals sign", "a length without end", "no length"],
)
def test_attributes_that_take_quadratic_time_are_refused(record: bytes, tmp_path: Path) -> None:
    began = time.process_time()
    with pytest.raises(ArchiveError, match="damaged or incomplete"):
        unpacked(gzip.compress(pax_header(record) + TAR), tmp_path)
    assert time.process_time() - began < 5


def test_zeros_before_other_bytes_are_no_tar(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="a file of an unknown format"):
        unpacked(gzip.compress(bytes(512) + TAR[512:]), tmp_path)
