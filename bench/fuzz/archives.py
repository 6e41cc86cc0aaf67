"""Archives and their mutations."""

import bz2
import gzip
import io
import lzma
import random
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

from bench.fuzz.manifests import FIXTURES
from bench.fuzz.mutations import MOST_BYTES, NAMES, WORDS, cut, mutated
from bench.fuzz.streams import PACKERS, zip_by
from splitter.archives import zip_directory, zip_records
from splitter.archives.zstandard import zstd
from tests.helpers.archives import (
    BROKEN_ZIPS,
    FILES,
    UNUSUAL_ZIPS,
    Unseekable,
    set_on,
    tar_of,
    with_directory,
    with_zip64_end,
    zip_of,
)

MIB = 1024 * 1024

# Let offsets overflow at 4 KiB instead of 4 GiB.
WRAP = zip_directory.WRAP = 4096

MANY: Final[Mapping[str, bytes]] = {
    **{f"{number:02}.jpg": bytes([number]) * (97 * number % 700) for number in range(30)},
    "manifest.csv": b"imageName\n" + b"".join(b"%02d.jpg\n" % number for number in range(30)),
}
"""An export larger than several ``WRAP``."""

COMPRESS: Final[list[Callable[[bytes], bytes]]] = [
    lambda data: gzip.compress(data, 1, mtime=0),
    lambda data: bz2.compress(data, 1),
    lambda data: lzma.compress(data, preset=0),
    lambda data: zstd.compress(data, 1),
]


def _zip64() -> bytes:
    """A small ZIP with every kind of Zip64 record."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as source:
        for name, data in FILES.items():
            with source.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                member.write(data)
    return with_zip64_end(stream.getvalue())


def _pax(draws: random.Random) -> bytes:
    """A tar with invalid pax records."""
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
    return bytes(checksummed(header, 0)) + tar_of(FILES, tarfile.GNU_FORMAT)


def _wrapped() -> list[bytes]:
    """macOS archives with numbers of 12 bits: images and larger files."""
    films = [{}, {2: 5000}, {0: 4096 - 35, 7: 4096, 8: 13_000, 33: 8192}]
    zips = []
    for sizes in films:
        members = list(MANY.items())
        for position, size in sorted(sizes.items()):
            members.insert(position, (f"{position}.mov", bytes(size)))
        zips.append(zip_by(zipfile.ZIP_STORED, dict(members), WRAP))
    return zips


def _linked() -> bytes:
    """A tar with hard links to earlier, later and missing files and to themselves."""
    links = [("c.jpg", "./a.jpg"), ("d.jpg", "c.jpg"), ("e.jpg", "e.jpg"), ("f.jpg", "g.jpg")]
    others = [tarfile.TarInfo(name) for name, _ in links]
    for info, (_, target) in zip(others, links, strict=True):
        info.type, info.linkname = tarfile.LNKTYPE, target
    rows = b"imageName\na.jpg\nc.jpg\nb.jpg\nd.jpg\n"
    return tar_of({**FILES, "manifest.csv": rows}, tarfile.GNU_FORMAT, others)


MANIFESTS_OF_60_MIB: Final = (b",", b"\n", b'"', b'\\"', b"a,a\n")


@cache
def bomb(number: int) -> bytes:
    """A small archive that unpacks to just below or above the limits."""
    if number < len(MANIFESTS_OF_60_MIB):
        text = MANIFESTS_OF_60_MIB[number]
        return zip_of({**FILES, "manifest.csv": text * (60 * MIB // len(text))})
    number -= len(MANIFESTS_OF_60_MIB)
    if number < len(COMPRESS):
        return COMPRESS[number](tar_of({"a.jpg": bytes(80 * MIB)}))
    number -= len(COMPRESS)
    if number < len(PACKERS) - 1:
        return zip_by(list(PACKERS)[1 + number], {**FILES, "a.jpg": bytes(70 * MIB)})
    links = [tarfile.TarInfo(f"{link}.jpg") for link in range(100)]
    for info in links:
        info.type, info.linkname = tarfile.LNKTYPE, "a.jpg"
    return gzip.compress(tar_of({"a.jpg": bytes(MIB)}, others=links), 1, mtime=0)


BOMBS: Final = len(MANIFESTS_OF_60_MIB) + len(COMPRESS) + len(PACKERS)


@cache
def tars() -> list[bytes]:
    beside = {f"x/{name}": data for name, data in FILES.items()}
    noisy = {"__MACOSX/._a.jpg": b"x", ".DS_Store": b"x", **FILES}
    return [
        *(tar_of(FILES, format) for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)),
        *(tar_of(FILES), tar_of(beside), tar_of(noisy), tar_of({"é" * 200: b"x", **FILES})),
        *(tar_of({"x" * 150: b"x", **FILES}, tarfile.GNU_FORMAT), _old_sparse(), _linked()),
        _linked(),
    ]


@cache
def archives() -> list[bytes]:
    """Archives before mutation, most of them small and valid."""
    beside = {f"x/{name}": data for name, data in FILES.items()}
    noisy = {"__MACOSX/._a.jpg": b"x", ".DS_Store": b"x", **FILES}
    zips = [
        *(zip_of(FILES, stream=Unseekable()), zip_of(FILES), zip_of(FILES, zipfile.ZIP_STORED)),
        *(zip_of(beside), zip_of(noisy), zip_of({"é.jpg": b"x", **FILES}), zip_of({}), _zip64()),
        *(zip_by(method, FILES) for method in PACKERS),
        *_wrapped(),
    ]
    odd = [*UNUSUAL_ZIPS.values(), *(data for data, _ in BROKEN_ZIPS.values())]
    odd = [data for data in odd if len(data) < MOST_BYTES]
    packed = [pack(tar) for tar in tars() for pack in COMPRESS]
    whole = [path.read_bytes() for path in sorted(FIXTURES.glob("4*"))]
    return 5 * zips + 6 * tars() + 2 * packed + odd + whole


def make_archive(draws: random.Random) -> bytes:
    kind = draws.random()
    if kind < 0.001:
        return mutated(bomb(draws.randrange(BOMBS)), draws, [change_zip, change_directory])
    if kind < 0.3:  # a tar, compressed or not
        data = _pax(draws) if kind < 0.1 else draws.choice(tars())
        data = mutated(data, draws, [change_tar, change_tar, cut_or_mix])
        data = draws.choice([*COMPRESS, bytes])(data)
        if draws.random() < 0.7:
            return data
        return mutated(data, draws, [cut_or_mix])
    data = draws.choice(archives())
    return mutated(data, draws, [change_zip, change_zip, change_directory, change_tar, cut_or_mix])


def cut_or_mix(data: bytes, draws: random.Random) -> bytes:
    return cut(data, draws, archives())


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
ZIP_NAME: Final = {
    b"PK\3\4": (30, 26),
    b"PK\1\2": (46, 28),
}  # its offset, and the offset of its length


def change_zip(data: bytes, draws: random.Random) -> bytes:
    """Change one field or name of one record."""
    places = [match.start() for match in re.finditer(b"PK[\1-\7][\2-\x08]", data)]
    places = [place for place in places if data[place : place + 4] in ZIP_FIELDS]
    if not places:
        return cut_or_mix(data, draws)
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
    """Change one value of a member in an otherwise valid central directory."""
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
    }
    name = draws.choice(list(values))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            position = draws.randrange(len(source.infolist()))
        return with_directory(data, set_on(position, **{name: values[name]}))
    except Exception:  # not a ZIP, or no longer one
        return cut_or_mix(data, draws)


TAR_FIELDS: Final = [
    *((0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (124, 12), (136, 12), (156, 1), (156, 1)),
    *((157, 100), (257, 8), (265, 32), (329, 8), (337, 8), (345, 155), (386, 12), (398, 12)),
    *((482, 1), (483, 12)),
]


def change_tar(data: bytes, draws: random.Random) -> bytes:
    """Change one field of one header and correct its checksum."""
    places = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not places:
        return cut_or_mix(data, draws)
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
    return bytes(checksummed(changed, place) if draws.random() < 0.95 else changed)


def checksummed(data: bytearray, place: int) -> bytearray:
    """The data with a correct checksum of the header at ``place``."""
    data[place + 148 : place + 156] = b" " * 8
    data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + 512])
    return data
