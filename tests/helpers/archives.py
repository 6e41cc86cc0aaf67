"""Small archives, built in memory."""

import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import IO

from splitter.archives import formats, zip_records
from splitter.archives.zip_directory import Read
from splitter.archives.zip_index import ZipIndex, file_reader

FILES = {
    "a.jpg": bytes(range(256)) * 4,
    "b.jpg": b"\xff\xd8\xff" + b"b" * 700,
    "manifest.csv": b"imageName\na.jpg\nb.jpg\n",
}
"""An export in small."""


class Unseekable(io.RawIOBase):
    """A stream that only goes forward: what is written to it is in ``getvalue()``."""

    def __init__(self) -> None:
        self._written = io.BytesIO()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        return self._written.write(data)

    def getvalue(self) -> bytes:
        return self._written.getvalue()


def bytes_reader(data: bytes) -> Read:
    return lambda start, length: data[start : start + length]


def identified(data: bytes) -> formats.Format:
    """The format of a file of these bytes."""
    return formats.identify(bytes_reader(data), len(data))


def index_of(data: bytes) -> ZipIndex:
    """The index of a ZIP of these bytes."""
    return ZipIndex(bytes_reader(data), len(data))


def index_of_file(file: IO[bytes]) -> ZipIndex:
    """The index of an open ZIP."""
    return ZipIndex(file_reader(file), os.fstat(file.fileno()).st_size)


def zip_of(
    files: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    compression: int = zipfile.ZIP_DEFLATED,
    stream: io.BytesIO | Unseekable | None = None,
) -> bytes:
    """A ZIP; a ``stream`` that cannot seek makes it one with data descriptors."""
    stream = stream or io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return stream.getvalue()


def tar_of(
    files: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    format: int = tarfile.PAX_FORMAT,
    others: Iterable[tarfile.TarInfo] = (),
) -> bytes:
    """A tar; ``others`` are members without content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
        for info in others:
            archive.addfile(info)
    return stream.getvalue()


def with_directory(data: bytes, change: Callable[[list[zipfile.ZipInfo]], object]) -> bytes:
    """The archive with a central directory that says something else of its members."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos, start = archive.infolist(), archive.start_dir
    change(infos)
    return data[:start] + b"".join(zip_records.central_directory(infos, start))


def set_on(position: int, **values: object) -> Callable[[list[zipfile.ZipInfo]], None]:
    def change(infos: list[zipfile.ZipInfo]) -> None:
        for name, value in values.items():
            setattr(infos[position], name, value)

    return change


def with_end(data: bytes, offset: int, value: int) -> bytes:
    """The archive with another value in a field of two bytes of its last record."""
    end = bytearray(data[-22:])
    struct.pack_into("<H", end, offset, value)
    return data[:-22] + end


def with_zip64_end(data: bytes, count: int | None = None) -> bytes:
    """The archive with Zip64 end records, which count this many files."""
    end = len(data) - zip_records.END_OF_CENTRAL_DIRECTORY.size
    files, size, offset = struct.unpack_from("<H2L", data, end + 10)
    files = files if count is None else count
    record = zip_records.ZIP64_END_OF_CENTRAL_DIRECTORY.pack(
        b"PK\6\6", 44, 45, 45, 0, 0, files, files, size, offset
    )
    locator = zip_records.ZIP64_END_OF_CENTRAL_DIRECTORY_LOCATOR.pack(b"PK\6\7", 0, end, 1)
    last = zip_records.END_OF_CENTRAL_DIRECTORY.pack(
        b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0
    )
    return data[:end] + record + locator + last


def overlap_bomb(count: int, kernel: bytes) -> bytes:
    """A ZIP of ``count`` intact files that share the bytes of one compressed ``kernel``.

    Each file's data quotes the next one's header, uncompressed, and goes on with the next one's
    data, so that header, size and CRC of every file are right.
    """
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    content, data = kernel, compressor.compress(kernel) + compressor.flush()
    member = b""
    infos: list[zipfile.ZipInfo] = []
    ends: list[int] = []  # counted from the end of the last member
    for number in reversed(range(count)):
        if member:
            size = len(member) - len(data)  # of the next one's header
            content = member[:size] + content
            data = struct.pack("<B2H", 0, size, size ^ 0xFFFF) + member  # RFC 1951, section 3.2.4
        info = zipfile.ZipInfo(f"{number:02}.jpg")
        info.compress_type = zipfile.ZIP_DEFLATED
        info.compress_size, info.file_size = len(data), len(content)
        info.CRC = zlib.crc32(content)
        member = zip_records.local_file_header(info) + data
        infos.insert(0, info)
        ends.insert(0, len(member))
    for info, end in zip(infos, ends, strict=True):
        info.header_offset = len(member) - end
    return member + b"".join(zip_records.central_directory(infos, len(member)))


STREAMED = zip_of(FILES, stream=Unseekable())

BROKEN_ZIPS = {
    "empty": (b"", "table of contents, at its very end, is missing"),
    "only its last record's name": (
        b"PK\5\6" + bytes(7),
        "table of contents, at its very end, is missing",
    ),
    "no ZIP": (b"\x1f\x8b" + bytes(100), "table of contents, at its very end, is missing"),
    "first half": (
        STREAMED[: len(STREAMED) // 2],
        "table of contents, at its very end, is missing",
    ),
    "last byte lost": (STREAMED[:-1], "table of contents, at its very end, is missing"),
    "cut at its front": (STREAMED[300:], "the last part of one that was split (.zip.002"),
    "only a piece of its directory": (STREAMED[-60:], "the last part of one that was split (.zip."),
    "two of them": (
        zip_of({"a.jpg": b"a"}) + STREAMED,
        "is two ZIPs, one after the other",
    ),
    "overlap": (
        with_directory(STREAMED, set_on(1, header_offset=0)),
        "'a.jpg' cannot be unpacked (it overlaps the file after it)",
    ),
    "overlap bomb": (
        overlap_bomb(20, bytes(10**6)),
        "'00.jpg' cannot be unpacked (it overlaps the file after it)",
    ),
    "overlap in part": (
        with_directory(STREAMED, set_on(0, compress_size=STREAMED.index(b"PK\3\4", 1))),
        "'a.jpg' cannot be unpacked (it overlaps the file after it)",
    ),
    "size beyond its end": (
        with_directory(STREAMED, set_on(2, compress_size=5 * 1024**3)),
        "'manifest.csv' cannot be unpacked (it reaches beyond the end",
    ),
    "offset beyond its end": (
        with_directory(STREAMED, set_on(1, header_offset=10**6)),
        "'b.jpg' cannot be unpacked (it reaches beyond the end",
    ),
    "count": (with_end(with_end(STREAMED, 8, 4), 10, 4), "lists 3 files but counts 4"),
    "count of Zip64": (
        with_zip64_end(STREAMED, 4),
        "lists 3 files but counts 4",
    ),
    "count that overflows": (
        with_zip64_end(STREAMED, 2**40),
        "lists 3 files but counts 1,099,511,627,776",
    ),
    "directory cut out": (
        STREAMED[: STREAMED.index(b"PK\1\2")] + STREAMED[-22:],
        "table of contents is not where it should be",
    ),
    "directory too large": (
        STREAMED[:-10] + struct.pack("<L", 2**30) + STREAMED[-6:],
        "table of contents is not where it should be",
    ),
    "directory damaged": (STREAMED.replace(b"PK\1\2", b"PK\1\1"), "is damaged"),
}
"""ZIPs that are refused, with the words of the refusal."""

ODD_ZIPS = {
    "encryption": (with_directory(STREAMED, set_on(0, flag_bits=9)), "a.jpg", "is encrypted"),
    "unsafe name": (zip_of({"../a.jpg": b""}), "../a.jpg", "an unsafe name, '../a.jpg'"),
    "no name": (with_directory(STREAMED, set_on(0, orig_filename="")), "", "has no name"),
    "name with a NUL": (
        with_directory(STREAMED, set_on(0, orig_filename="a\0.jpg")),
        "a\\x00.jpg",
        "an unsafe name, 'a\\x00.jpg'",
    ),
    "name twice": (
        zip_of([("a.jpg", b"1"), ("./a.jpg", b"2")]),
        "a.jpg",
        "is in the archive twice",
    ),
    "name not UTF-8": (
        zip_of({"é.jpg": b""}).replace("é".encode(), b"\xff\xff"),
        "\\udcff\\udcff.jpg",
        "an unsafe name",
    ),
    "symbolic link": (
        with_directory(STREAMED, set_on(0, create_system=3, external_attr=0o120777 << 16)),
        "a.jpg",
        "is a link (an alias)",
    ),
    "symbolic link by a system that has none": (
        with_directory(STREAMED, set_on(0, create_system=0, external_attr=0o120777 << 16)),
        "a.jpg",
        "is a link (an alias)",
    ),
    "pipe": (
        with_directory(STREAMED, set_on(0, create_system=3, external_attr=0o10644 << 16)),
        "a.jpg",
        "is a device or a pipe",
    ),
    "JPEG by WinZip": (
        with_directory(STREAMED, set_on(0, compress_type=96)),
        "a.jpg",
        "JPEG by WinZip (method 96)",
    ),
    "AES": (with_directory(STREAMED, set_on(0, compress_type=99)), "a.jpg", "is encrypted"),
}
"""Archives with a file that no batch may hold: its name and the reason."""

UNUSUAL_ZIPS = {
    "bytes after its end": STREAMED + b"\r\n",
    "a pipe's zeros after its end": STREAMED + bytes(10_240),
    "a disk's zeros after its end": STREAMED + bytes(1024 * 1024),
    "volume number": with_end(STREAMED, 4, 1),
    "volume of the directory": with_end(STREAMED, 6, 1),
    "count of a volume": with_end(STREAMED, 8, 2),
    "Zip64 where it is not needed": with_zip64_end(STREAMED),
    "marker of one volume": b"PK00" + STREAMED,
    "offset left to Zip64, which is not there": STREAMED[:-6] + b"\xff" * 4 + STREAMED[-2:],
    "end record in the comment": with_end(STREAMED, 20, 22) + STREAMED[-22:],
    "signature in the comment": with_end(STREAMED, 20, 9) + b"xPK\5\6xxxx",
    "a program in front": b"MZ" + bytes(5000) + STREAMED,
}
"""Archives as some programs leave them: all of them hold ``FILES``."""
