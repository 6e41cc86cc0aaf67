"""The manifest of an export: find it, check it against the images, cut it into batches."""

import csv
import hashlib
import io
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from types import MappingProxyType

import pandas as pd

from splitter.archives import formats
from splitter.archives.members import DEFAULT_LIMITS
from splitter.manifest import checks
from splitter.manifest import images as manifest_images
from splitter.manifest import text as manifest_text
from splitter.manifest.text import SAVE_AS, ManifestError, Row, Table, refusal, short
from splitter.messages import ARCHIVE_SUFFIXES
from splitter.sentences import Said

MANIFEST = "manifest.csv"

OTHER_LETTERS = (
    " under this spelling (the program that zipped it may encode accents and other letters in its "
    "own way; 7-Zip keeps them)"
)

PROBLEMS_SHOWN = 3

LONGEST_NAME = 1024
"""Characters of a name, with its folders, that is compared by meaning."""

# Tables that a person's program saved in the manifest's place, and how it calls them.
OTHER_TABLES = {
    ".xlsx": "an Excel workbook",
    ".xlsm": "an Excel workbook",
    ".xls": "an old Excel workbook",
    ".ods": "a LibreOffice workbook",
    ".numbers": "a Numbers workbook",
    ".tsv": "a table with tabs",
    ".tab": "a table with tabs",
    ".csv.txt": "a manifest with another name",
    "manifest.txt": "a manifest with another name",
}


@dataclass(frozen=True)
class Batch:
    """What one batch ZIP holds.

    Attributes:
        part: number of the batch, from 1.
        first_row, last_row: the manifest's rows in it, from 1, both included.
        manifest: its ``manifest.csv``, UTF-8.
        images: the images its rows name, each once, in the order of the rows.
    """

    part: int
    first_row: int
    last_row: int
    manifest: bytes
    images: tuple[str, ...]

    @property
    def rows(self) -> int:
        return self.last_row - self.first_row + 1

    def metadata(self, source_etag: str) -> dict[str, str]:
        """What the batch's object says of its origin; the same words mean the same content."""
        return {
            "source-etag": source_etag.strip('"'),
            "rows": f"{self.first_row}-{self.last_row}",
            "manifest-sha256": hashlib.sha256(self.manifest).hexdigest(),
        }


@dataclass(frozen=True)
class Partition:
    """An export cut into batches.

    Attributes:
        manifest: the manifest's name in the archive.
        folder: what stands before the images' names there: nothing, or ``name/``.
        batches: in order; together they hold every row once.
        unlisted: files of the archive that no row names, unusable ones among them.
        images: the archive's file of each name that the rows use. The two differ by the folder, and
            where the archive writes accents in another way (Unicode's NFD against its NFC).
        column: position of the column that names the image.
        warnings: sentences on how the manifest was read.
        zooniverse: sentences on what Zooniverse will not take, and
        zooniverse_notes: on what it advises; see ``splitter.zooniverse``.
    """

    manifest: str
    folder: str
    batches: list[Batch]
    unlisted: list[str]
    images: dict[str, str]
    column: int = 0
    warnings: list[str | Said] = field(default_factory=list)
    zooniverse: list[str] = field(default_factory=list)
    zooniverse_notes: list[str] = field(default_factory=list)


def partition_export(
    names: Collection[str],
    read_member: Callable[[str], bytes],
    image_column: str,
    batch_size: int,
    max_cells: int = DEFAULT_LIMITS.max_cells,
    unusable: Mapping[str, Said] = MappingProxyType({}),
    max_columns: int = DEFAULT_LIMITS.max_columns,
) -> Partition:
    """Check an archive's manifest against its files and cut it into batches.

    Args:
        names: of the archive's files.
        read_member: gives the bytes of one of them.
        image_column: the manifest's column that names the image, relative to the manifest.
        batch_size: rows of a batch.
        max_cells: of the manifest.
        unusable: further files, that no row may name, and why; as ``members.Names`` has them.
        max_columns: of the manifest.

    Raises:
        ManifestError: if the manifest is not there, cannot be read, or does not fit the files.
    """
    every = [*names, *unusable]
    name = find(every)
    if name in unusable:
        raise ManifestError(
            f"The archive has the manifest '{short(name)}', which {unusable[name].text}."
        )
    folder = folder_of(name)
    files = _by_spelling(folder, every)
    table = manifest_text.read(read_member(name), image_column, max_cells, files, max_columns)
    table.warnings.extend(checks.of_text(table.text))
    checked = checks.RowChecks(table.header, table.column, table.text)
    rows = _seen(check_images(table, files, every, unusable), checked)
    batches = list(partition(table.header, rows, table.column, batch_size))
    images = {image: _file_of(image, files) for batch in batches for image in batch.images}
    listed = {name, *images.values()}
    left = {other.removeprefix(folder) for other in names if other not in listed}
    table.warnings.extend(checked.finish(left))
    return Partition(
        manifest=name,
        folder=folder,
        batches=batches,
        unlisted=[other for other in every if other not in listed],
        images=images,
        column=table.column,
        warnings=table.warnings,
    )


def _seen(rows: Iterable[Row], checked: checks.RowChecks) -> Iterator[Row]:
    for line, cells in rows:
        checked.see(line, cells)
        yield line, cells


def _by_spelling(folder: str, names: Iterable[str]) -> dict[str, str]:
    """The archive's files by what a row may call them: as the archive does, or composed (NFC)."""
    files = {name.removeprefix(folder): name for name in names if name.startswith(folder)}
    composed = {_composed(name): file for name, file in files.items()}
    return composed | files


def _file_of(image: str, files: Mapping[str, str]) -> str:
    """The archive's file that a row means, or "" for none."""
    return files.get(image) or files.get(_composed(image), "")


def _composed(name: str) -> str:
    """A name in Unicode's composed form; unchanged if it is longer than a file's name can be.

    Normalisation takes quadratic time for combining marks.
    """
    return unicodedata.normalize("NFC", name) if len(name) <= LONGEST_NAME else name


def find(names: Collection[str]) -> str:
    """The manifest among an archive's member names: ``manifest.csv``, else the only CSV.

    It stands at the root or inside one folder around everything; a name at the root goes first.

    Raises:
        ManifestError: if there is none or more than one.
    """
    csvs = [name for name in names if name.lower().endswith(".csv") and name.count("/") <= 1]
    named = [name for name in csvs if PurePosixPath(name).name == MANIFEST]
    for candidates in (named, csvs):
        for depth in (0, 1):
            found = [name for name in candidates if name.count("/") == depth]
            if len(found) == 1:
                return found[0]
            if found:
                raise ManifestError(
                    f"The archive has more than one manifest ({_some(found)}); "
                    "keep the right one and export or zip it again."
                )
    if document := formats.document(names):
        raise ManifestError(f"The export is {document}; {formats.SEND_INSTEAD}.")
    inner = next((name for name in names if name.lower().endswith(ARCHIVE_SUFFIXES)), None)
    if inner:
        raise ManifestError(
            f"The archive has no {MANIFEST}, but another archive inside, '{short(inner)}'; "
            "send that one."
        )
    for ending, what in OTHER_TABLES.items():
        others = [name for name in names if name.lower().endswith(ending) and name.count("/") <= 1]
        others = [name for name in others if "manifest" in name.lower()] or others
        if len(others) == 1:
            raise ManifestError(
                f"The archive has no {MANIFEST}, but '{short(others[0])}', {what}; open it in "
                f"Excel or LibreOffice, {SAVE_AS}."
            )
    deep = next((name for name in names if name.lower().endswith(f"/{MANIFEST}")), None)
    if deep:
        raise ManifestError(
            f"The archive has no {MANIFEST} at its root or in one folder around everything, but "
            f"'{short(deep)}', too deep inside; zip the content of that folder again."
        )
    raise ManifestError(
        f"The archive has no {MANIFEST}, neither at its root nor in one folder around everything; "
        "export it again."
    )


def folder_of(name: str) -> str:
    """What stands before a manifest's name in the archive, and so before its images': ``name/``."""
    return name[: name.rfind("/") + 1]


def check_images(
    table: Table,
    files: Mapping[str, str],
    names: Collection[str] = (),
    unusable: Mapping[str, Said] = MappingProxyType({}),
) -> Iterator[Row]:
    """Pass the rows on, and make sure that each names an image of the archive.

    Args:
        files: the archive's files by what a row may call them, relative to the manifest.
        names: all of the archive's files, to find what is meant by a wrong name.
        unusable: of these, those that no row may name, and why.

    Raises:
        ManifestError: when all rows have been read, if one names no image, or one that cannot be
            used.
    """
    problems: list[str] = []
    missing: list[str] = []
    refused: list[str] = []
    count = last_line = 0
    last: Row = (0, [])
    for line, cells in table.rows:
        last_line = line
        name = cells[table.column]
        file = _file_of(name, files) if name not in ("", MANIFEST) else ""
        if file in unusable:
            refused.append(
                f"line {line} of its manifest names '{short(name)}', which {unusable[file].text}"
            )
        elif file:
            if not count and not refused:
                yield line, cells
            continue
        else:
            count += 1
            last = (line, cells)
            if name not in ("", MANIFEST) and len(missing) < manifest_images.COMPARED:
                missing.append(name)
            if count <= PROBLEMS_SHOWN:
                problems.append(
                    f"line {line} names '{short(name)}', which is not in the archive"
                    + ("" if name.isascii() else OTHER_LETTERS)
                    if name not in ("", MANIFEST)
                    else f"line {line} names no image"
                    if name == ""
                    else f"line {line} names the manifest as its image"
                )
    line, cells = last
    if count == 1 and line == last_line and manifest_text.looks_like_total(cells, table.column):
        raise ManifestError(manifest_text.total_line(line, cells))
    if count:
        instead = manifest_images.instead(missing, files, names)
        raise ManifestError(refusal("rows without their image", problems, count, instead))
    if refused:
        more = f" ({len(refused)} rows name such files)" if len(refused) > 1 else ""
        raise ManifestError(f"The archive cannot be split as it is: {refused[0]}{more}.")


def partition(
    header: Sequence[str], rows: Iterable[Row], column: int, batch_size: int
) -> Iterator[Batch]:
    """Cut a table into batches of ``batch_size`` rows, the last with what is left.

    One frame a batch: a frame of the whole table takes three times the memory of its text.
    """
    cells = (cells for _, cells in rows)
    part = start = 0
    while taken := list(islice(cells, batch_size)):
        part += 1
        frame = pd.DataFrame(taken, columns=list(header), dtype=object)
        yield Batch(
            part=part,
            first_row=start + 1,
            last_row=start + len(frame),
            manifest=_write(frame),
            images=tuple(frame.iloc[:, column].unique()),
        )
        start += len(frame)


def _write(frame: pd.DataFrame) -> bytes:
    """The rows as RFC 4180 with ``\n``, as the export has it and Zooniverse's client reads it."""
    text = io.StringIO(newline="")
    plain = csv.writer(text, lineterminator="\n")
    # Before Python 3.13 the writer leaves a bare \r unquoted, and a reader would end the row there.
    # Zooniverse's client drops the blanks that a cell without quotation marks begins with.
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in (frame.columns.tolist(), *frame.itertuples(index=False, name=None)):
        cells = "\0".join(row)
        delicate = "\r" in cells or "\0 " in cells or cells[:1] == " "
        (quoted if delicate else plain).writerow(row)
    return text.getvalue().encode()


def _some(names: Iterable[str], limit: int = PROBLEMS_SHOWN) -> str:
    shown = list(islice(names, limit + 1))
    return ", ".join(short(name) for name in shown[:limit]) + (", …" if len(shown) > limit else "")
