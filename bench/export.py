"""Make an export archive of any size, like those that BIOSPEX writes with Node's `archiver`.

Run it with `python -m bench.export export.zip --images 8000 --gigabytes 2.4 --order sorted`.
"""

import argparse
import csv
import io
import random
from collections.abc import Sequence
from itertools import accumulate, cycle, pairwise
from pathlib import Path
from typing import Literal, get_args
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

Order = Literal["sorted", "merged", "shuffled"]

MERGED_RUNS = 4  # an export above 8,000 images is merged from up to four archives
SIZE_SPREAD = (1 / 3, 5 / 3)  # of the mean: 0.2 to 1 MB around 0.6 MB, as real exports have it
SMALLEST_MEAN = 1_000  # bytes

JPEG_START = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
JPEG_END = b"\xff\xd9"

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


def make_export(
    path: Path, images: int, total_bytes: int, seed: int = 1, order: Order = "sorted"
) -> None:
    """Write an export of `images` images, `total_bytes` bytes in all, to `path`.

    The archive is deflated and streamed: no local header knows a size, the data descriptor after
    each member does. `manifest.csv` is the last member; its rows ascend by image name. So do the
    images when `sorted`; `merged` has them in four ascending runs, each over the whole range of
    names; `shuffled` in random order. The same arguments give the same bytes, and another order
    gives the same members.

    An image is random bytes between a JPEG's start and end. DEFLATE can only store it, and stored
    blocks inflate at the speed of memory. A real JPEG shrinks by 0 to 2 % and inflates at 0.4 to
    1.5 GB/s (zlib 1.2.13, one core), so whatever unpacks this archive is seen at its best.
    """
    if not 0 < images * SMALLEST_MEAN <= total_bytes:
        raise ValueError(f"{total_bytes} bytes are too few for {images} images.")
    rng = random.Random(seed)
    subjects = sorted(f"{rng.getrandbits(96):024x}" for _ in range(images))
    sizes = dict(zip(subjects, _sizes(images, total_bytes, rng), strict=True))
    with _Stream(io.FileIO(path, "w")) as file, ZipFile(file, "w") as archive:
        for subject in _ordered(subjects, order, rng):
            content = _image(sizes[subject], random.Random(f"{seed} {subject}"))
            # Level 0 stores at once; the other levels come to store as well, 30 times slower.
            archive.writestr(_member(f"{subject}.jpg"), content, ZIP_DEFLATED, compresslevel=0)
        manifest = _manifest(subjects).encode()
        archive.writestr(_member("manifest.csv"), manifest, ZIP_DEFLATED)


class _Stream(io.BufferedWriter):
    """An output that cannot tell its position, which makes `ZipFile` write data descriptors."""

    def tell(self) -> int:
        raise io.UnsupportedOperation


def _sizes(images: int, total_bytes: int, rng: random.Random) -> list[int]:
    """Image sizes in bytes that add up to `total_bytes`."""
    ends = list(accumulate((rng.uniform(*SIZE_SPREAD) for _ in range(images)), initial=0.0))
    scale = total_bytes / ends[-1]
    return [round(end * scale) - round(start * scale) for start, end in pairwise(ends)]


def _ordered(subjects: Sequence[str], order: Order, rng: random.Random) -> Sequence[str]:
    match order:
        case "sorted":
            return subjects
        case "merged":
            return [s for run in range(MERGED_RUNS) for s in subjects[run::MERGED_RUNS]]
        case "shuffled":
            return rng.sample(subjects, len(subjects))


def _image(size: int, rng: random.Random) -> bytes:
    return JPEG_START + rng.randbytes(size - len(JPEG_START) - len(JPEG_END)) + JPEG_END


def _member(name: str) -> ZipInfo:
    """A regular file as `archiver` describes it: made by version 4.5 on Unix, mode 644."""
    member = ZipInfo(name, date_time=(2024, 5, 17, 9, 30, 0))
    member.create_system = 3
    member.create_version = 45
    member.external_attr = 0o100644 << 16 | 0x20
    return member


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
    parser = argparse.ArgumentParser(description="Write an export archive of made-up images.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--gigabytes", type=float, default=2.4, help="of images, 10^9 bytes each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--order", choices=get_args(Order), default="sorted")
    given = parser.parse_args()
    total_bytes = round(given.gigabytes * 1e9)
    make_export(given.path, given.images, total_bytes, given.seed, given.order)


if __name__ == "__main__":
    main()
