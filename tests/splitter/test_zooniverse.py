"""Batches as Zooniverse's own client takes them, and the warnings about the others."""

import csv
import io
import re
import zipfile
from pathlib import Path

import pytest

from splitter import zooniverse
from splitter.archives import extract as archive
from splitter.archives.extract import Contents
from splitter.batches.zip import BatchZip
from splitter.errors import ExportError
from splitter.manifest import partition as manifest
from splitter.manifest.partition import Partition
from tests.conftest import EXPORTS, FIXTURES
from tests.helpers.archives import index_of, tar_of, zip_of
from tests.helpers.panoptes import Panoptes, panoptes, upload

pytestmark = pytest.mark.slow  # runs the client for each batch

CASES = sorted((FIXTURES / "cases" / "manifests").glob("*.zip"))

JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0" + bytes(300) + b"\xff\xd9"


def bytes_of(size: int) -> bytes:
    """A JPEG of more than ``size`` bytes."""
    return JPEG[:-2] + bytes(size) + JPEG[-2:]


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\6\0\0\0" + bytes(100)
TIFF = b"II*\0\x08\0\0\0" + bytes(100)


def inspected(data: bytes, folder: Path, batch_size: int = 5) -> tuple[Partition, Contents]:
    """An archive in the extract lane, up to its batches."""
    path = folder / "archive"
    path.write_bytes(data)
    contents = archive.extract(path, folder / "images")
    parts = manifest.partition_export(contents.members, contents.read, "imageName", batch_size)
    return zooniverse.inspect(parts, contents), contents


def export(text: str, **images: bytes) -> bytes:
    return zip_of({**images, "manifest.csv": text.encode()})


def unpacked(parts: Partition, contents: Contents, folder: Path) -> list[Path]:
    """Each batch as a person unpacks it."""
    images = {name: contents.members[file] for name, file in parts.images.items()}
    folders = []
    for batch in parts.batches:
        made = BatchZip(batch, images, contents.store, (2026, 1, 1, 0, 0, 0))
        path = folder / f"part{batch.part}"
        with zipfile.ZipFile(io.BytesIO(made.read(0, made.size))) as source:
            source.extractall(path)
        folders.append(path)
    return folders


def expected(batch: Path, column: int) -> list[tuple[dict[str, str], bytes]]:
    with (batch / "manifest.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return [
        (dict(zip(header, row, strict=True)), (batch / row[column]).read_bytes()) for row in rows
    ]


def by_name(subjects: list[tuple[dict[str, str], bytes]]) -> list[tuple[dict[str, str], bytes]]:
    return sorted(subjects, key=lambda subject: sorted(subject[0].items()))


def complete(server: Panoptes, wanted: list[tuple[dict[str, str], bytes]]) -> bool:
    got = server.uploaded()
    assert all(len(files) == 1 for _, files in got)
    return by_name([(metadata, files[0]) for metadata, files in got]) == by_name(wanted)


def arrives(parts: Partition, contents: Contents, folder: Path) -> bool:
    """Whether the client uploads all of the only batch."""
    [batch] = unpacked(parts, contents, folder)
    with panoptes() as server:
        upload(batch, server)
        return complete(server, expected(batch, parts.column))


@pytest.mark.parametrize("path", [EXPORTS[0], *CASES], ids=lambda path: path.name)
def test_zooniverses_client_takes_a_batch_or_the_summary_has_a_reason(
    path: Path, tmp_path: Path
) -> None:
    try:
        parts, contents = inspected(path.read_bytes(), tmp_path, 100)
    except ExportError:
        return  # no batches
    for batch in unpacked(parts, contents, tmp_path):
        with panoptes() as server:
            printed = upload(batch, server)
            if not complete(server, expected(batch, parts.column)):
                assert parts.zooniverse, printed


@pytest.mark.parametrize(
    ("images", "finding"),
    [
        ({"a.jpg": b""}, r"1 image is empty \(0 bytes\).*: a\.jpg\."),
        ({"a.jpg": bytes_of(1024 * 1024)}, r"too large for Zooniverse's client.*: a\.jpg \("),
        ({"a.jpg": TIFF}, r"1 image is no JPEG.*: a\.jpg \(a TIFF image\)"),
        (
            {"a.jpg": b"<!DOCTYPE html><html><body>404</body></html>"},
            r"a\.jpg \(a web page",
        ),
    ],
    ids=["empty", "too large", "TIFF", "web page"],
)
def test_an_image_that_the_client_refuses_has_a_warning(
    images: dict[str, bytes], finding: str, tmp_path: Path
) -> None:
    data = export("subjectId,imageName\n1,a.jpg\n2,b.jpg\n", **images, **{"b.jpg": JPEG})
    parts, contents = inspected(data, tmp_path)
    assert _matches(parts, finding)
    assert not arrives(parts, contents, tmp_path)


@pytest.mark.parametrize(
    ("cell", "finding"),
    [
        ("x" * 140_000, r"1 row has a cell longer than 131,072 characters.*: row 2 with 140,000"),
        (".", r"1 cell in the first row of a batch has the name.* folder.*: '\.' in row 2"),
    ],
    ids=["too long", "folder"],
)
def test_a_cell_that_the_client_refuses_has_a_warning(
    cell: str, finding: str, tmp_path: Path
) -> None:
    data = export(f"note,imageName\n{cell},a.jpg\n", **{"a.jpg": JPEG})
    parts, contents = inspected(data, tmp_path)
    assert _matches(parts, finding)
    assert not arrives(parts, contents, tmp_path)


def test_cells_that_begin_with_blanks_arrive_at_zooniverse_as_they_are(tmp_path: Path) -> None:
    data = export('note,imageName\n"  two, blanks",a.jpg\n  Ångström,b.jpg\n', **{
        "a.jpg": JPEG, "b.jpg": PNG,
    })  # fmt: skip
    parts, contents = inspected(data, tmp_path)
    assert parts.zooniverse == ()
    assert arrives(parts, contents, tmp_path)


def _matches(parts: Partition, pattern: str) -> bool:
    return any(re.search(pattern, str(sentence)) for sentence in parts.zooniverse)


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (
            "imageName,references\na.jpg,http://example.org/1.JPG\n",
            "column 'references' has 1 cell with text like",
        ),
        (
            "imageName,references\na.jpg,http://example.org/1.jpg?s=2\n",
            "column 'references' has 1 cell",
        ),
        (
            "imageName,image2\na.jpg,b.jpg\n",
            "column 'image2' has 1 cell with the name of an image",
        ),
        (
            "imageName,x\na.jpg,1\nb.jpg,1\na.jpg,1\n",
            r"1 row is in the manifest more than once.*: a\.jpg in row 4",
        ),
        (
            "imageName,x\na.jpg,1\na.jpg,2\n",
            r"1 row names an image that an earlier row has.*a\.jpg in row 3",
        ),
        ("imageName,x\na.jpg,\0\n", "1 row has a NUL character.*: row 2"),
        ("imageName,x,x\na.jpg,1,2\n", "Columns have the same name.*: 'x'"),
        (
            "imageName\nc.tif\n",
            r"1 image has an extension that the web page does not know.*: c\.tif",
        ),
        (
            'imageName\n"d,e.jpg"\n',
            r"1 image has a name with characters that the web page does not allow",
        ),
        ("imageName\nlarge.jpg\n", r"1 image is too large for Zooniverse's web page.*large\.jpg"),
    ],
)
def test_the_web_pages_rules_give_a_warning(text: str, finding: str, tmp_path: Path) -> None:
    images = dict.fromkeys(("a.jpg", "b.jpg", "c.tif", "d,e.jpg", "f.svg"), JPEG)
    images["large.jpg"] = bytes_of(1000 * 1024)
    parts, _ = inspected(export(text, **images), tmp_path)
    assert _matches(parts, finding)
    assert len(parts.zooniverse) == 1


def test_of_many_cases_three_are_named_and_all_counted(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(9)]
    text = "\n".join(["imageName", *names])
    parts, _ = inspected(export(text, **dict.fromkeys(names, b"")), tmp_path)
    assert parts.zooniverse[0].text.startswith("9 images are empty")
    assert parts.zooniverse[0].text.endswith(": 0.jpg, 1.jpg, 2.jpg, ….")


def test_more_rows_than_the_web_page_advises_is_advice_and_no_warning(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(1001)]
    data = export("\n".join(["imageName", *names]), **dict.fromkeys(names, JPEG))
    parts, _ = inspected(data, tmp_path, 2000)
    assert parts.zooniverse == ()
    assert "has 1,001 rows" in zooniverse.section(parts)[0]


@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_a_sound_export_has_no_warning(pack: object, tmp_path: Path) -> None:
    files = {"a.jpg": JPEG, "b.png": PNG, "manifest.csv": b"imageName\na.jpg\nb.png\n"}
    parts, _ = inspected(pack(files), tmp_path)  # type: ignore[operator]
    assert zooniverse.section(parts) == ["No Zooniverse problems found."]


def test_of_a_zip_elsewhere_sizes_and_some_images_are_looked_at() -> None:
    files = {f"{number}.jpg": TIFF for number in range(9)}
    text = "\n".join(["imageName", *files, ""])
    index = index_of(zip_of({**files, "9.jpg": b"", "manifest.csv": text.encode()}))
    parts = manifest.partition_export(index.members, index.read, "imageName", 5)
    seen = zooniverse.inspect(parts, index)
    assert _matches(seen, r"3 images are no JPEG.*\(3 were looked at\).*0\.jpg \(a TIFF image\)")


@pytest.mark.parametrize(
    ("start", "taken"),
    [
        (JPEG, True),
        (PNG, True),
        (b"GIF89a", True),
        (b'<?xml version="1.0"?>\n<!-- a --> <!-- b -->\n<svg xmlns="x">', True),
        (b'<?xml?><!DOCTYPE svg PUBLIC "a" [<!ENTITY b "c"> ]>\n<svg>', True),
        (b" \n<svg ", True),
        (b"<svgx>", False),
        (b"<!-- <svg> -->", False),
        (b"<!-- a --><html><svg>", False),
        (b"RIFF\0\0\0\0WEBPVP8 ", False),
        (b"", False),
    ],
)
def test_an_image_is_known_by_its_first_bytes(start: bytes, taken: bool) -> None:
    assert zooniverse.is_taken(start) == taken


def test_a_tiny_image_that_is_whole_is_not_called_cut_off() -> None:
    gif = bytes.fromhex(
        "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002"
    )
    files = {f"{number}.jpg": JPEG for number in range(9)}
    files |= {"1.jpg": gif + bytes.fromhex("02440100 3b"), "2.jpg": JPEG[:20]}
    text = "\n".join(["imageName", *files, ""])
    index = index_of(zip_of({**files, "manifest.csv": text.encode()}))
    parts = manifest.partition_export(index.members, index.read, "imageName", 5)
    [problem] = zooniverse.inspect(parts, index).zooniverse
    assert problem.sentence is zooniverse.CUT_OFF
    assert problem.text.endswith("a part of such an image: 2.jpg.")


def test_a_row_is_counted_as_excel_shows_it(tmp_path: Path) -> None:
    text = 'subjectId,note,imageName\n1,"two\nlines",1.jpg\n,,\n\n2,x,2.jpg\n2,x,2.jpg\n'
    parts, _ = inspected(export(text, **{"1.jpg": JPEG, "2.jpg": JPEG}), tmp_path, 1)
    assert _matches(parts, r"once.*: 2\.jpg in row 6 \(subjectId '2'\)")
