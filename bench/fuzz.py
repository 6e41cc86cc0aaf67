"""Throw broken archives and manifests at their readers: ``python -m bench.fuzz --minutes 10``.

Each input is made of a sound one, by mutations that know the formats: fields of ZIP records and tar
headers (checksums mended), PAX records, gzip trailers, quotes and line ends of CSV, besides cuts,
splices of two inputs and random bytes. What is promised of each, and checked:

- a result, or an ``ExportError``; no other exception, in seconds and within bounded memory;
- nothing is written but the store;
- what is accepted has the members that ``zipfile`` or ``tarfile`` read, ``ZipIndex`` agrees with
  ``extract``, and the batches planned from it are ZIPs with the same images;
- the rows of an accepted manifest stand unchanged in its batches, as ``csv`` reads them.

An input is known by target, seed and number: ``--again archive:7:1234`` runs a single one. Exits
with 1 if anything was found.
"""

import argparse
import csv
import gzip
import io
import multiprocessing
import os
import random
import re
import resource
import signal
import struct
import sys
import tarfile
import time
import traceback
import zipfile
import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, Final

from splitter import (
    archive,
    formats,
    manifest,
    manifest_text,
    splicing,
    zip_records,
    zip_sample,
    zooniverse,
)
from splitter.archive import Contents
from splitter.errors import ExportError
from splitter.members import DAMAGE, UNPRINTABLE, is_noise, plain
from splitter.zip_index import ZipIndex, ranged_file
from tests.archives import BROKEN_ZIPS, FILES, Unseekable, set_on, tar_of, with_directory, zip_of

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
MIB = 1024 * 1024

SECONDS = 20
"""Of the processor, after which an input counts as endless."""

PATIENCE = 300
"""Seconds by the clock, after which a worker counts as stuck."""

MEMORY = 768 * MIB
"""Bytes beside what an idle worker has: some times the 64 MiB that are read as a whole at most."""

FILE_SIZE = 96 * MIB
"""Of the store; 64 MiB of content are allowed to any archive, and inputs here are small."""

MOST_BYTES = 512 * 1024
MINIMISE_SECONDS = 20.0
SHOWN_AS_TEXT = 600

WORDS: Final = [
    *(0, 1, 2, 8, 9, 12, 14, 20, 45, 0x800, 0x801, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 2**31 - 1),
    *(2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**33, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
]
NAMES: Final = [
    *("a.jpg", "A.JPG", "manifest.csv", "x/manifest.csv", "x.csv", "../a.jpg", "/etc/x", "c:x"),
    *("", ".", "./", "./.", "a/../b", "a\\b", "a\0b", "a\nb", "é.jpg", "\u202e.jpg", "x" * 300),
    *("__MACOSX/a", ".DS_Store", "._a.jpg", "dir/", "././a.jpg", "a//b.jpg", "CON", "a.jpg/b.jpg"),
]


class BrokenPromiseError(Exception):
    """A promise that was not kept; the message says which."""


# Archives


def _zip64() -> bytes:
    """A small ZIP with every Zip64 record that there is."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as source:
        for name, data in FILES.items():
            with source.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                member.write(data)
    data = stream.getvalue()
    end = len(data) - 22
    members, size, offset = struct.unpack_from("<H2L", data, end + 10)
    record = zip_records.ZIP64_END_OF_CENTRAL_DIRECTORY.pack(
        b"PK\6\6", 44, 45, 45, 0, 0, members, members, size, offset
    )
    locator = zip_records.ZIP64_END_OF_CENTRAL_DIRECTORY_LOCATOR.pack(b"PK\6\7", 0, end, 1)
    return data[:end] + record + locator + data[end:]


def _pax(draws: random.Random) -> bytes:
    """A tar whose PAX records say what no writer would."""
    stream = io.BytesIO()
    keys = ["path", "size", "mtime", "linkpath", "hdrcharset", "uid", "comment"]
    keys += [f"GNU.sparse.{word}" for word in ("major", "minor", "map", "size", "realsize", "name")]
    keys += ["GNU.sparse.offset", "GNU.sparse.numbytes", "GNU.sparse.numblocks"]
    values = ["-1", "0", "1", "512", "700", "9" * 30, "nan", "inf", "1e400", "", "1,2,3", "0,5,9,1"]
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as target:
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if draws.random() < 0.5:
                info.pax_headers = {
                    draws.choice(keys): draws.choice([*values, *NAMES]).replace("\0", "")
                    for _ in range(draws.randint(1, 3))
                }
            target.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _old_sparse() -> bytes:
    info = tarfile.TarInfo("hole.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398] = header[398:410] = b"%011o\0" % 0
    header[483:495] = b"%011o\0" % 100_000
    return bytes(_checksum(header, 0)) + tar_of(FILES, tarfile.GNU_FORMAT)


@cache
def bombs() -> list[bytes]:
    """Small archives of some 60 MiB, which is just less than what is read as a whole."""
    texts = [text * (60 * MIB // len(text)) for text in (b",", b"\n", b'"', b'\\"', b"a,a\n")]
    zips = [zip_of({**FILES, "manifest.csv": text}) for text in texts]
    return [*zips, gzip.compress(tar_of({"a.jpg": bytes(80 * MIB)}), 1, mtime=0)]


@cache
def archives() -> list[bytes]:
    """Archives to begin with, most of them small and sound."""
    beside = {f"x/{name}": data for name, data in FILES.items()}
    noisy = {"__MACOSX/._a.jpg": b"x", ".DS_Store": b"x", **FILES}
    zips = [
        *(zip_of(FILES, stream=Unseekable()), zip_of(FILES), zip_of(FILES, zipfile.ZIP_STORED)),
        *(zip_of(FILES, zipfile.ZIP_BZIP2), zip_of(FILES, zipfile.ZIP_LZMA), _zip64()),
        *(zip_of(beside), zip_of(noisy), zip_of({"é.jpg": b"x", **FILES}), zip_of({})),
    ]
    tars = [
        *(tar_of(FILES, format) for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)),
        *(tar_of(FILES), tar_of(beside), tar_of(noisy), tar_of({"é" * 200: b"x", **FILES})),
        *(tar_of({"x" * 150: b"x", **FILES}, tarfile.GNU_FORMAT), _old_sparse()),
    ]
    broken = [data for data, _ in BROKEN_ZIPS.values() if len(data) < MOST_BYTES]
    whole = [path.read_bytes() for path in sorted(FIXTURES.glob("4*"))]
    return 6 * zips + 6 * tars + 4 * [gzip.compress(tar, mtime=0) for tar in tars] + broken + whole


def make_archive(draws: random.Random) -> bytes:
    kind = draws.random()
    if kind < 0.001:
        return mutated(draws.choice(bombs()), draws, [change_zip, change_directory])
    data = _pax(draws) if kind < 0.1 else draws.choice(archives())
    if data[:4] == b"\x1f\x8b\x08\0" and draws.random() < 0.7:
        data = mutated(gzip.decompress(data), draws, [change_tar, cut])
        data = gzip.compress(data, 1, mtime=0)
        if draws.random() < 0.7:
            return data
    return mutated(data, draws, [change_zip, change_zip, change_directory, change_tar, cut])


def mutated(
    data: bytes, draws: random.Random, ways: Sequence[Callable[[bytes, random.Random], bytes]]
) -> bytes:
    for _ in range(draws.choice([0, 1, 1, 1, 2, 2, 3, 6])):
        data = draws.choice(ways)(data, draws)[:MOST_BYTES]
    return data


def _fields(record: struct.Struct) -> list[tuple[int, int]]:
    """Offset and size of each field but the signature."""
    fields, offset = [], 0
    for times, code in re.findall(r"(\d*)([sHLQ])", record.format):
        size = struct.calcsize(f"<{code}")
        for _ in range(int(times or 1)):
            fields.append((offset, size))
            offset += size
    return [field for field in fields if field[0] >= 4]


ZIP_FIELDS: Final = {
    b"PK\3\4": _fields(zip_records.LOCAL_FILE_HEADER),
    b"PK\1\2": _fields(zip_records.CENTRAL_DIRECTORY_HEADER),
    b"PK\5\6": _fields(zip_records.END_OF_CENTRAL_DIRECTORY),
    b"PK\6\6": _fields(zip_records.ZIP64_END_OF_CENTRAL_DIRECTORY),
    b"PK\6\7": _fields(zip_records.ZIP64_END_OF_CENTRAL_DIRECTORY_LOCATOR),
    b"PK\7\x08": _fields(struct.Struct("<4s3L")),
}
ZIP_NAME: Final = {b"PK\3\4": (30, 26), b"PK\1\2": (46, 28)}  # where it stands, where its length


def change_zip(data: bytes, draws: random.Random) -> bytes:
    """Another value in one field of one record, or in a name or extra field."""
    places = [match.start() for match in re.finditer(b"PK[\1-\7][\2-\x08]", data)]
    places = [place for place in places if data[place : place + 4] in ZIP_FIELDS]
    if not places:
        return cut(data, draws)
    place = draws.choice(places[-8:] if draws.random() < 0.3 else places)
    kind = data[place : place + 4]
    changed = bytearray(data)
    if kind in ZIP_NAME and draws.random() < 0.3:
        start, length_at = ZIP_NAME[kind]
        length = int.from_bytes(data[place + length_at : place + length_at + 2], "little")
        name = draws.choice(NAMES).encode()[:length].ljust(length, b"x")
        changed[place + start : place + start + length] = name
        return bytes(changed)
    offset, size = draws.choice(ZIP_FIELDS[kind])
    old = int.from_bytes(data[place + offset : place + offset + size], "little")
    value = draws.choice([*WORDS, old + 1, old - 1, old ^ 1 << draws.randrange(8 * size)])
    value = draws.choice([value, value, len(data), place, draws.getrandbits(8 * size)])
    value %= 1 << 8 * size
    changed[place + offset : place + offset + size] = value.to_bytes(size, "little")
    return bytes(changed)


def change_directory(data: bytes, draws: random.Random) -> bytes:
    """Another word on a member in a central directory that is in itself sound."""
    values: dict[str, Any] = {
        "header_offset": draws.choice([*WORDS, draws.randrange(len(data) + 1)]) % 2**63,
        "compress_size": draws.choice([*WORDS, draws.randrange(len(data) + 1)]) % 2**63,
        "file_size": draws.choice([*WORDS, draws.randrange(len(data) + 1)]) % 2**63,
        "CRC": draws.getrandbits(32),
        "flag_bits": draws.choice([0, 1, 8, 9, 0x20, 0x40, 0x800, 0x808, 0x2000, 0xFFFF]),
        "compress_type": draws.choice([0, 1, 8, 9, 12, 14, 93, 95, 97, 98, 99]),
        "orig_filename": draws.choice(NAMES),
        "extra": draws.randbytes(draws.randrange(24)),
        "comment": draws.randbytes(draws.randrange(40)),
        "extract_version": draws.choice([10, 20, 45, 46, 63, 64, 255]),
    }
    name = draws.choice(list(values))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            position = draws.randrange(len(source.infolist()))
        return with_directory(data, set_on(position, **{name: values[name]}))
    except Exception:  # not a ZIP, or no longer one
        return cut(data, draws)


TAR_FIELDS: Final = [
    *((0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (124, 12), (136, 12), (156, 1), (156, 1)),
    *((157, 100), (257, 8), (265, 32), (329, 8), (337, 8), (345, 155), (386, 12), (398, 12)),
    *((482, 1), (483, 12)),
]


def change_tar(data: bytes, draws: random.Random) -> bytes:
    """Another value in one field of one header, whose checksum is mended."""
    places = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not places:
        return cut(data, draws)
    place = draws.choice(places)
    start, length = draws.choice(TAR_FIELDS)
    number = draws.choice(
        [0, 1, 511, 512, 513, 10**6, 8 ** (length - 1) - 1, draws.getrandbits(30)]
    )
    wide = draws.choice([*WORDS, draws.getrandbits(64)])
    value = draws.choice(
        [
            b"%0*o\0" % (max(1, length - 1), number),
            (b"\x80" + wide.to_bytes(8, "big").rjust(length - 1, b"\0"))[-length:],
            b"\xff" * length,
            b"\x80" + b"\xff" * (length - 1),
            draws.choice(NAMES).encode(),
            draws.choice([*b"01234567xgLKSNVMDAX\0"]).to_bytes(1, "big"),
            draws.choice(b"01xgLKS").to_bytes(1, "big"),
            draws.randbytes(length),
            b"-1",
            b" ",
        ]
    )
    changed = bytearray(data)
    changed[place + start : place + start + length] = value[:length].ljust(length, b"\0")
    return bytes(_checksum(changed, place) if draws.random() < 0.95 else changed)


def _checksum(data: bytearray, place: int) -> bytearray:
    data[place + 148 : place + 156] = b" " * 8
    data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + 512])
    return data


def cut(data: bytes, draws: random.Random) -> bytes:
    """What befalls any file: cut off, doubled in part, mixed with another, bytes changed."""
    start, end = sorted((draws.randrange(len(data) + 1), draws.randrange(len(data) + 1)))
    match draws.randrange(9):
        case 0:
            return data[:start]
        case 1:
            return data[start:]
        case 2:
            return data[:start] + data[end:]
        case 3:
            return data[:end] + data[start:]
        case 4:
            other = draws.choice(archives())
            return data[:start] + other[draws.randrange(len(other) + 1) :]
        case 5:
            return data + draws.choice([data, b"\0", bytes(512), draws.choice(archives())])
        case 6:
            return data[:start] + draws.randbytes(draws.randint(1, 40)) + data[start:]
        case 7:
            last = max(0, len(data) - draws.randint(1, 30))  # gzip's trailer, a ZIP's last record
            return data[:last] + bytes(byte ^ draws.getrandbits(8) for byte in data[last:])
    changed = bytearray(data)
    for _ in range(draws.randint(1, 4)):
        if changed:
            changed[draws.randrange(len(changed))] ^= 1 << draws.randrange(8)
    return bytes(changed)


def check_archive(data: bytes, directory: Path) -> bool:
    """Whether the archive is accepted by either reader.

    Raises:
        BrokenPromiseError: if they break a promise.
    """
    path, store = directory / "archive", directory / "store"
    path.write_bytes(data)
    store.unlink(missing_ok=True)
    contents = _refused(lambda: archive.extract(path, store))
    if {entry.name for entry in directory.iterdir()} - {"archive", "store"}:
        raise BrokenPromiseError("something was written beside the store")
    index = None
    if (
        _refused(
            lambda: formats.identify(lambda start, length: data[start : start + length], len(data))
        )
        == "zip"
    ):
        index = _refused(lambda: ZipIndex(io.BytesIO(data)))
        remote = _refused(
            lambda: ZipIndex(ranged_file(lambda at, size: data[at : at + size], len(data)))
        )
        if (index is None) != (remote is None):
            raise BrokenPromiseError("ZipIndex judges a file otherwise than ranges of it")
        if contents and not index:
            raise BrokenPromiseError("extract accepts what ZipIndex refuses")
    if contents and index:
        _compare_zip(contents, index, path)
    elif contents:
        _compare(contents, path)
    if contents and index:
        if list(contents.members) != list(index.members):
            raise BrokenPromiseError("extract and ZipIndex name other members")
        for name in index.members:
            if b"".join(index.chunks(name)) != _content(contents, name):
                raise BrokenPromiseError("extract and ZipIndex read another content")
    for files in filter(None, (contents, index)):
        with suppress(ExportError):
            name = manifest.find(files.members)
            parts = manifest.partition_export(files.members, files.read, "imageName", 2)
            if (
                files is index
                and index.why_not_spliceable(manifest.folder_of(name)) is None
                and zip_sample.disagreement(index, index.read_at)[0] is None
                and parts.images == {name: name for name in parts.images}
            ):
                for batch in parts.batches:
                    _splice(batch, index, data, contents)
    return bool(contents or index)


def _content(contents: Contents, name: str) -> bytes:
    member = contents.members[name]
    with contents.store.open("rb") as store:
        return os.pread(store.fileno(), member.size, member.offset)


def _format(data: bytes) -> formats.Format:
    return formats.identify(lambda start, length: data[start : start + length], len(data))


def _compare_zip(contents: Contents, index: ZipIndex, path: Path) -> None:
    """What was unpacked with what the standard library reads, which is less; and with the CRCs."""
    theirs: dict[int, bytes] = {}
    with (
        suppress(*DAMAGE, NotImplementedError, OSError, struct.error),
        zipfile.ZipFile(path) as zip_,
    ):
        for info in zip_.infolist():
            with suppress(Exception):  # one more method, name or flag that it does not take
                theirs[info.header_offset] = zip_.read(info)
    for name, span in index.members.items():
        content = _content(contents, name)
        if theirs.get(span.start, content) != content:
            raise BrokenPromiseError("extract and the standard library read another content")
        if not contents.members[name].crc == span.info.CRC == zlib.crc32(content):
            raise BrokenPromiseError("a member's CRC is not that of its content")


def _compare(contents: Contents, path: Path) -> None:
    """What was unpacked with what the standard library reads, whole files at once."""
    theirs: dict[str, bytes] = {}
    with tarfile.open(path, encoding="utf-8") as tar:
        for entry in tar:
            file = tar.extractfile(entry) if entry.isfile() else None
            if file and not is_noise(entry.name):
                theirs[entry.name] = file.read()
    meant = {plain(name): data for name, data in theirs.items()}
    for name in contents.unusable:
        meant.pop(name, None)
    # Names that are not to be printed are spoken of in another way.
    meant = {name: data for name, data in meant.items() if not UNPRINTABLE.search(name)}
    if meant.keys() != contents.members.keys():
        raise BrokenPromiseError("extract and the standard library name other members")
    for name, data in meant.items():
        if _content(contents, name) != data:
            raise BrokenPromiseError("extract and the standard library read another content")
        if contents.members[name].crc != zlib.crc32(data):
            raise BrokenPromiseError("a member's CRC is not that of its content")


def _splice(batch: manifest.Batch, index: ZipIndex, data: bytes, contents: Contents | None) -> None:
    limits = splicing.PartLimits(min_part_size=200, max_copy_size=2000, max_parts=40)
    plan = splicing.plan_batch(batch, index.members, (2026, 11, 24, 0, 0, 0), limits)
    spliced = b""
    for part in plan.parts:
        ranges = [part.range] if isinstance(part, splicing.Copied) else []
        if isinstance(part, splicing.Uploaded):
            ranges = list(part.ranges)
        for found in ranges:
            if not 0 <= found.start < found.end <= len(data):
                raise BrokenPromiseError("a plan has a range that the archive has not")
            spliced += data[found.start : found.end]
        spliced += part.end if isinstance(part, splicing.Uploaded) else b""
    if len(spliced) != plan.size:
        raise BrokenPromiseError("a plan is of another size than its parts")
    if contents is None:
        return  # the splice lane does not read images, so it may accept damaged ones
    with zipfile.ZipFile(io.BytesIO(spliced)) as made:
        if sorted(made.namelist()) != sorted([*batch.images, manifest.MANIFEST]):
            raise BrokenPromiseError("a spliced batch has other members than its rows")
        for name in batch.images:
            if made.read(name) != _content(contents, name):
                raise BrokenPromiseError("a spliced batch has another image than the archive")


# Manifests

TOKENS: Final = [
    *('"', '""', "\\", '\\"', '\\""', ",", ",,", "\n", "\r", "\r\n", "\n\n", "\0", "\ufeff", "\t"),
    *(
        "imageName",
        "a.jpg",
        "é",
        "\u2028",
        "\x85",
        "\x1c",
        "\ud7ff",
        "🦋",
        "'",
        ";",
        " ",
        "NA",
        "=1",
    ),
    *("manifest.csv", '"\n"', '","', '\\",\\"', '\\"\n', "x" * 200, "../a.jpg", '"a\nb"'),
]
BYTES: Final = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf5", b"\0"]


@cache
def manifests() -> list[bytes]:
    texts = [
        "imageName\na.jpg\nb.jpg\n",
        "subjectId,imageName\r\n1,a.jpg\r\n2,b.jpg",
        'imageName,x\na.jpg,"5\\" tall, wide"\nb.jpg,"ends in \\"\n',
        'imageName,x\na.jpg,"say ""so"", twice"\n\nb.jpg,"two\nlines"\n',
        "\ufeffimageName,x,x\na.jpg,NA,007\nb.jpg,1e5,\n",
        'x,imageName\n"\r",a.jpg\n"\\\\",b.jpg\n',
    ]
    real = (FIXTURES / "php-manifest.csv").read_bytes()
    with zipfile.ZipFile(next(FIXTURES.glob("41-*.zip"))) as source:
        whole = source.read("manifest.csv")
    return 3 * [text.encode() for text in texts] + 2 * [real] + [whole]


def make_manifest(draws: random.Random) -> bytes:
    if draws.random() < 0.2:  # of nothing but what matters to a reader of CSV
        some = draws.sample(TOKENS, 6)
        text = "".join(draws.choice(some) for _ in range(draws.randint(0, 20)))
        return f"imageName{draws.choice(['', ',x'])}\n{text}".encode()
    return mutated(draws.choice(manifests()), draws, [change_text, change_text, change_lines, cut])


def change_text(data: bytes, draws: random.Random) -> bytes:
    """A token put in, or in the place of some bytes."""
    token = draws.choice(BYTES) if draws.random() < 0.1 else draws.choice(TOKENS).encode()
    start = draws.randrange(len(data) + 1)
    return data[:start] + token + data[start + draws.choice([0, 0, 1, len(token)]) :]


def change_lines(data: bytes, draws: random.Random) -> bytes:
    """Lines in another order, doubled or lost."""
    lines = data.splitlines(keepends=True)
    match draws.randrange(3):
        case 0:
            lines[1:] = draws.sample(lines[1:], len(lines[1:]))
        case 1:
            lines *= draws.randint(2, 4)
        case 2:
            lines = [line for line in lines if draws.random() < 0.8]
    return b"".join(lines)


def check_manifest(data: bytes, directory: Path) -> bool:
    """Whether the manifest is accepted, by ``read`` and with images to its rows.

    Raises:
        BrokenPromiseError: if a cell does not arrive.
    """
    table = _refused(lambda: _table(data))
    if table is None:
        return False
    header, wanted, warnings, column = table
    if b'\\"' not in data and not warnings:
        text = data.decode("utf-8-sig")
        plain = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        if plain != [header, *wanted]:
            raise BrokenPromiseError("csv reads other cells")
    names = {manifest.MANIFEST, *(row[column] for row in wanted)}
    parts = _refused(lambda: manifest.partition_export(names, lambda _: data, "imageName", 2))
    if parts is None:
        return True
    got: list[list[str]] = []
    for batch in parts.batches:
        batch_header, *rows = csv.reader(io.StringIO(batch.manifest.decode(), newline=""))
        if batch_header != header:
            raise BrokenPromiseError("a batch has another header")
        if {row[column] for row in rows} != set(batch.images):
            raise BrokenPromiseError("a batch has other images than its rows name")
        if _table(batch.manifest)[:2] != (header, rows):
            raise BrokenPromiseError("a batch's manifest is not read as csv reads it")
        got += rows
    if got != wanted:
        raise BrokenPromiseError("the batches have other cells than the manifest")
    zooniverse.findings(parts, dict.fromkeys(names, 1))
    return True


def _table(data: bytes) -> tuple[list[str], list[list[str]], list[str], int]:
    """Header, rows and warnings of a manifest, and the position of its image column."""
    table = manifest_text.read(data, "imageName")
    rows = [cells for _, cells in table.rows]
    return table.header, rows, table.warnings, table.column


def _refused(read: Callable[[], Any]) -> Any:
    """The result, or None if the input is refused in the way it should be."""
    try:
        return read()
    except ExportError as error:
        if not str(error):
            raise BrokenPromiseError("an input is refused without a word") from error
        return None


# The machine


@dataclass(frozen=True)
class Target:
    make: Callable[[random.Random], bytes]
    check: Callable[[bytes, Path], bool]

    def input(self, name: str, seed: int, number: int) -> bytes:
        return self.make(random.Random(f"{name}:{seed}:{number}"))


TARGETS: Final = {
    "archive": Target(make_archive, check_archive),
    "manifest": Target(make_manifest, check_manifest),
}


def verdict(target: Target, data: bytes, directory: Path) -> tuple[bool, str, str]:
    """Whether an input is accepted; or which promise it broke, in short and at length."""
    try:
        return target.check(data, directory), "", ""
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/flows/" in frame.filename] or frames
        where = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
        what = (
            str(error)
            if isinstance(error, BrokenPromiseError)
            else f"{type(error).__name__} in {where}"
        )
        return False, what, "".join(traceback.format_exception(error))


def minimised(data: bytes, broken: Callable[[bytes], bool]) -> bytes:
    """A shorter input that is broken too: stretches are left out, ever smaller ones."""
    deadline = time.monotonic() + MINIMISE_SECONDS
    size = len(data) // 2
    while size and time.monotonic() < deadline:
        start = 0
        while start < len(data) and time.monotonic() < deadline:
            shorter = data[:start] + data[start + size :]
            if broken(shorter):
                data = shorter
            else:
                start += size
        size //= 2
    return data


def work(name: str, seed: int, first: int, step: int, state: Any, report: Connection) -> None:
    """Run every ``step``-th input from ``first`` on, until the process is killed.

    Args:
        state: shared with the watchdog: the number of the input, since when it runs, how many were
            accepted and how many refused.
        report: takes what broke, at length and with the input.
    """
    target = TARGETS[name]
    target.input(name, seed, 0)
    _limit(resource.RLIMIT_DATA, _data_bytes() + MEMORY)
    _limit(resource.RLIMIT_FSIZE, FILE_SIZE)
    known: set[str] = set()
    with TemporaryDirectory(prefix="fuzz-") as home:
        os.chdir(home)
        directory = Path(home, "run")
        directory.mkdir()

        def run(data: bytes) -> tuple[bool, str, str]:
            state[1] = time.monotonic()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process
            return verdict(target, data, directory)

        def breaks(what: str, data: bytes) -> bool:
            return run(data)[1] == what

        for number in count(first, step):
            state[0] = number
            accepted, what, story = run(target.input(name, seed, number))
            state[2 if accepted else 3] += 1
            if what and what not in known:
                known.add(what)
                data = target.input(name, seed, number)
                data = minimised(data, partial(breaks, what))
                report.send((what, f"{name}:{seed}:{number}", story, data))
            if list(Path(home).iterdir()) != [directory]:
                report.send(("written outside the store", f"{name}:{seed}:{number}", "", b""))


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _data_bytes() -> int:
    """Of this process, as RLIMIT_DATA counts them."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmData:")[2].split()[0]) * 1024


class Worker:
    """A process that runs inputs, and what it is known by."""

    def __init__(self, name: str, seed: int, first: int, step: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self.seed, self.step = name, seed, step
        self.state = context.Array("d", [first, time.monotonic(), 0, 0], lock=False)
        self.reports, report = context.Pipe(duplex=False)
        self.process = context.Process(
            target=work, args=(name, seed, first, step, self.state, report), daemon=True
        )
        self.process.start()
        report.close()

    @property
    def number(self) -> int:
        return int(self.state[0])

    def ended_badly(self) -> str | None:
        if not self.process.is_alive():
            if self.process.exitcode == -signal.SIGPROF:
                return f"no end after {SECONDS} s of the processor"
            return f"the process died ({self.process.exitcode})"
        if time.monotonic() - self.state[1] > PATIENCE:
            return f"no end after {PATIENCE} s"
        return None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def fuzz(seconds: float, seed: int, workers: int, finds: Path | None) -> int:
    """Run until the time is over; returns the number of different finds."""
    running = [Worker(name, seed, number, workers) for name in TARGETS for number in range(workers)]
    counts: Counter[tuple[str, str]] = Counter()
    found: Counter[tuple[str, str]] = Counter()

    def note(name: str, what: str, which: str, story: str, data: bytes) -> None:
        nonlocal finds
        found[name, what] += 1
        if found[name, what] > 1:
            return
        print(f"\nFOUND {name}: {what}\n  input {which}, {len(data):,} bytes minimised")
        if len(data) <= SHOWN_AS_TEXT:
            print(f"  base64 {b64encode(data).decode()}")
        else:
            finds = finds or Path(mkdtemp(prefix="fuzz-finds-"))
            finds.mkdir(parents=True, exist_ok=True)
            path = finds / which.replace(":", "-")
            path.write_bytes(data)
            print(f"  in {path}")
        print("".join(f"  {line}\n" for line in story.splitlines()[-12:]), flush=True)

    def collect(worker: Worker) -> None:
        with suppress(EOFError):
            while worker.reports.poll():
                note(worker.name, *worker.reports.recv())
        for kind, position in (("accepted", 2), ("refused", 3)):
            counts[worker.name, kind] += int(worker.state[position])
            worker.state[position] = 0

    start = time.monotonic()
    try:
        while time.monotonic() - start < seconds:
            time.sleep(0.5)
            for position, worker in enumerate(running):
                with suppress(EOFError):
                    while worker.reports.poll():
                        note(worker.name, *worker.reports.recv())
                if what := worker.ended_badly():
                    worker.stop()
                    collect(worker)
                    which = f"{worker.name}:{seed}:{worker.number}"
                    data = TARGETS[worker.name].input(worker.name, seed, worker.number)
                    note(worker.name, what, which, "", data)
                    running[position] = Worker(worker.name, seed, worker.number + workers, workers)
    finally:
        elapsed = time.monotonic() - start
        for worker in running:
            worker.stop()
            collect(worker)
    for name in TARGETS:
        accepted, refused = counts[name, "accepted"], counts[name, "refused"]
        print(
            f"{name}: {accepted + refused:,} inputs in {elapsed:.0f} s "
            f"({(accepted + refused) / elapsed:.0f}/s), {accepted:,} accepted, {refused:,} refused"
        )
    print(f"seed {seed}: {len(found)} finds")
    return len(found)


def again(which: str) -> int:
    """Run one input once more, without limits; returns 1 if it still breaks a promise."""
    name, seed, number = which.split(":")
    target = TARGETS[name]
    data = target.input(name, int(seed), int(number))
    with TemporaryDirectory(prefix="fuzz-") as home:
        accepted, what, story = verdict(target, data, Path(home))
    print(f"{len(data):,} bytes: {story or ('accepted' if accepted else 'refused')}")
    return 1 if what else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--workers", type=int, default=1, help="processes a target (1)")
    parser.add_argument("--finds", type=Path, help="where long inputs go (a new directory)")
    parser.add_argument("--again", metavar="TARGET:SEED:NUMBER", help="run a single input")
    options = parser.parse_args(arguments)
    if options.again:
        return again(options.again)
    found = fuzz(60 * options.minutes, options.seed, options.workers, options.finds)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
