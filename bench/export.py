"""Make an export archive of any size, like those that BIOSPEX writes with Node's `archiver`.

Run it with `python -m bench.export export.zip --images 8000 --order sorted`, or name a `.tar.gz`.
"""

import argparse
import csv
import io
import random
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Literal, get_args
from zipfile import ZIP_DEFLATED, ZipInfo

from PIL import Image, ImageDraw

from splitter.archives import zip_records

Order = Literal["sorted", "merged", "shuffled"]

MERGED_RUNS = 4  # an export above 8,000 images is merged from up to four archives
LEVEL = 6  # of DEFLATE: archiver's, as zlib's, default
MEAN_IMAGE = 350_000  # bytes
DISTINCT_PICTURES = 200
DATA_DESCRIPTOR = 1 << 3
MODIFIED = (2024, 5, 17, 9, 30, 0)

JPEG_END = b"\xff\xd9"
JPEG_COMMENT = b"\xff\xfe"

COLUMNS = (
    "subjectId",
    "imageName",
    "references",
    "scientificName",
    "country",
    "stateProvince",
    "county",
    "eol",
    "mol",
    "idigbio",
    "#institutionCode",
    "#collectionCode",
    "#catalogNumber",
    "#occurrenceRecordId",
    "#occurrernceId",
    "#imageId",
    "#expeditionId",
    "#expeditionTitle",
)
SCIENTIFIC_NAMES = (
    "Quercus alba L.",
    'Carex "lurida" Wahlenb., var. x',
    "Hieracium floribundum Wimm. & Grab.",
    "Ångströmia longipes",
    "梅 (Prunus mume)",
    "NA",
    "1e5",
    "",
    "Rosa sp.\ndet. 1937",
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A JPEG without its end, and that deflated up to the boundary of a byte."""

    content: bytes
    deflated: bytes
    crc: int


def make_export(path: Path, images: int, seed: int = 1, order: Order = "sorted") -> None:
    """Write an export of `images` images, of 300 to 400 KB each, to `path`.

    A path that ends in `.zip` becomes a ZIP, deflated and streamed: no local header knows a size,
    the data descriptor after each member does. Any other becomes a tar.gz, as old exports are.
    `manifest.csv` is the last member; its rows ascend by image name. So do the images when
    `sorted`; `merged` has them in four ascending runs, each over the whole range of names;
    `shuffled` in random order. The same arguments give the same bytes, and another order gives the
    same members.

    An image is a real JPEG, so DEFLATE packs it in Huffman-coded blocks that shrink it by less than
    a percent and cost whoever unpacks them all of that time. A few hundred pictures are drawn and
    deflated; each image is one of them with a comment of its own.
    """
    rng = random.Random(seed)
    subjects = sorted(f"{rng.getrandbits(96):024x}" for _ in range(images))
    chosen = {subject: rng.randrange(min(images, DISTINCT_PICTURES)) for subject in subjects}
    ordered = _ordered(subjects, order, rng)
    members = (
        (f"{subject}.jpg", _picture(chosen[subject]), _comment(subject)) for subject in ordered
    )
    write = _write_zip if path.suffix == ".zip" else _write_tar_gz
    with path.open("wb") as file:
        write(file, members, _manifest(subjects).encode())


def make_sparse_export(path: Path, images: int, size: int) -> None:
    """Write an export whose images take hardly any room on disk: a small JPEG, then a hole.

    The images are stored, `size` bytes each, all the same, in the order of the manifest's rows. The
    file looks like a large export to whoever reads its index, its headers and some of its images.
    """
    picture = io.BytesIO()
    Image.new("RGB", (30, 40), (40, 90, 40)).save(picture, "JPEG")
    jpeg = picture.getvalue()
    crc = zlib.crc32(jpeg.ljust(size, b"\0"))
    subjects = [f"{number:024x}" for number in range(images)]
    manifest = _manifest(subjects).encode()
    members = [(f"{subject}.jpg", jpeg, size, crc) for subject in subjects]
    infos: list[ZipInfo] = []
    with path.open("wb") as file:
        for name, content, length, checksum in [
            *members,
            ("manifest.csv", manifest, len(manifest), zlib.crc32(manifest)),
        ]:
            infos.append(info := zip_records.stored_member(name, length, checksum, MODIFIED))
            info.header_offset = file.tell()
            file.write(zip_records.local_file_header(info) + content)
            file.seek(length - len(content), io.SEEK_CUR)
        file.writelines(zip_records.central_directory(infos, file.tell()))


def _ordered(subjects: Sequence[str], order: Order, rng: random.Random) -> Sequence[str]:
    match order:
        case "sorted":
            return subjects
        case "merged":
            return [s for run in range(MERGED_RUNS) for s in subjects[run::MERGED_RUNS]]
        case "shuffled":
            return rng.sample(subjects, len(subjects))


@cache
def _picture(number: int) -> Picture:
    """A sheet of paper with its grain, the plant on it, and as many bytes as a photograph of it."""
    rng = random.Random(number)
    width, height = rng.randint(860, 960), rng.randint(1120, 1220)
    light = Image.frombytes("RGB", (24, 32), rng.randbytes(24 * 32 * 3))
    paper = Image.new("RGB", (width, height), (235, 228, 210))
    sheet = Image.blend(paper, light.resize(paper.size, Image.Resampling.BICUBIC), 0.3)
    at = rng.randrange(1000), rng.randrange(1000)
    grain = _grain().crop((*at, at[0] + width, at[1] + height))
    sheet = Image.blend(sheet, Image.merge("RGB", (grain,) * 3), 0.3)
    draw = ImageDraw.Draw(sheet)
    for _ in range(60):
        leaf = [(rng.randrange(width), rng.randrange(height)) for _ in range(4)]
        colour = (rng.randrange(90), rng.randrange(60, 140), 40)
        draw.line(leaf, fill=colour, width=rng.randrange(1, 9))
    jpeg = io.BytesIO()
    sheet.save(jpeg, "JPEG", quality=75)
    content = jpeg.getvalue().removesuffix(JPEG_END)
    return Picture(content, _deflate(content), zlib.crc32(content))


@cache
def _grain() -> Image.Image:
    """Noise of which every picture shows another piece."""
    width, height = 2100, 2400
    rng = random.Random(0)
    # A sum of four even distributions is nearly normal, with a deviation of 37.
    first, second, third, fourth = (
        Image.frombytes("L", (width, height), rng.randbytes(width * height)) for _ in range(4)
    )
    return Image.blend(Image.blend(first, second, 0.5), Image.blend(third, fourth, 0.5), 0.5)


def _comment(text: str) -> bytes:
    """The bytes that follow a picture: a JPEG comment, allowed anywhere, and the end marker."""
    return JPEG_COMMENT + struct.pack(">H", 2 + len(text)) + text.encode() + JPEG_END


def _deflate(content: bytes, flush: int = zlib.Z_FULL_FLUSH) -> bytes:
    """A piece of a DEFLATE stream that needs no byte before it; the last piece is `Z_FINISH`ed."""
    deflater = zlib.compressobj(LEVEL, wbits=-zlib.MAX_WBITS)
    return deflater.compress(content) + deflater.flush(flush)


Members = Iterator[tuple[str, Picture, bytes]]


def _write_zip(file: io.BufferedIOBase, members: Members, manifest: bytes) -> None:
    infos: list[ZipInfo] = []

    def write(name: str, pieces: Sequence[bytes], size: int, crc: int) -> None:
        infos.append(info := _member(name))
        info.header_offset = file.tell()
        file.write(zip_records.local_file_header(info))
        file.writelines(pieces)
        info.CRC, info.compress_size, info.file_size = crc, sum(map(len, pieces)), size
        # APPNOTE 4.3.9
        file.write(struct.pack("<4s3L", b"PK\7\10", crc, info.compress_size, info.file_size))

    for name, picture, comment in members:
        pieces = (picture.deflated, _deflate(comment, zlib.Z_FINISH))
        size = len(picture.content) + len(comment)
        write(name, pieces, size, zlib.crc32(comment, picture.crc))
    deflated = _deflate(manifest, zlib.Z_FINISH)
    write("manifest.csv", (deflated,), len(manifest), zlib.crc32(manifest))
    file.writelines(zip_records.central_directory(infos, file.tell()))


def _member(name: str) -> ZipInfo:
    """A regular file as `archiver` describes it: made by version 4.5 on Unix, mode 644."""
    member = ZipInfo(name, date_time=MODIFIED)
    member.compress_type = ZIP_DEFLATED
    member.flag_bits = DATA_DESCRIPTOR
    member.CRC = 0  # in the local header, as the sizes
    member.create_system = 3
    member.create_version = 45
    member.external_attr = 0o100644 << 16 | 0x20
    return member


def _write_tar_gz(file: io.BufferedIOBase, members: Members, manifest: bytes) -> None:
    crc = size = 0

    def write(content: bytes, deflated: bytes) -> None:
        nonlocal crc, size
        crc, size = zlib.crc32(content, crc), size + len(content)
        file.write(deflated)

    def header(name: str, length: int) -> bytes:
        member = tarfile.TarInfo(name)
        member.size, member.mtime = length, 1_715_938_200
        return member.tobuf(tarfile.USTAR_FORMAT)

    def padding(length: int) -> bytes:
        return bytes(-length % tarfile.BLOCKSIZE)

    file.write(b"\x1f\x8b\x08\0\0\0\0\0\0\x03")  # RFC 1952, section 2.3
    between = b""  # two pictures
    for name, picture, comment in members:
        length = len(picture.content) + len(comment)
        between += header(name, length)
        write(between, _deflate(between))
        write(picture.content, picture.deflated)
        between = comment + padding(length)
    between += header("manifest.csv", len(manifest)) + manifest + padding(len(manifest))
    between += bytes(2 * tarfile.BLOCKSIZE)
    write(between, _deflate(between, zlib.Z_FINISH))
    file.write(struct.pack("<2L", crc, size % 2**32))


def _manifest(subjects: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, (subject, name) in enumerate(zip(subjects, cycle(SCIENTIFIC_NAMES), strict=False)):
        row = {
            "subjectId": subject,
            "imageName": f"{subject}.jpg",
            "references": f"https://example.org/specimens/{subject}",
            "scientificName": name,
            "country": "United States",
            "stateProvince": "Florida",
            "county": "Leon",
            "#institutionCode": "FSU",
            "#collectionCode": "R",
            "#catalogNumber": f"{number:09}",
            "#occurrenceRecordId": f"urn:catalog:FSU:R:{number:09}",
            "#imageId": subject,
            "#expeditionId": 41,
            "#expeditionTitle": 'Herbarium "day one", part 1',
        }
        writer.writerow(row.get(column, "") for column in COLUMNS)
    return text.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write an export archive of made-up pictures.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--order", choices=get_args(Order), default="sorted")
    given = parser.parse_args()
    make_export(given.path, given.images, given.seed, given.order)


if __name__ == "__main__":
    main()
