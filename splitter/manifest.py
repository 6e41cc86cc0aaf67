"""The manifest of an export: find it, read it without changing a cell, cut it into batches."""

import csv
import hashlib
import io
import re
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from types import MappingProxyType

import pandas as pd

from splitter.errors import ExportError
from splitter.members import DEFAULT_LIMITS
from splitter.messages import ARCHIVE_SUFFIXES

MANIFEST = "manifest.csv"

PROBLEMS_SHOWN = 3

# The csv module refuses cells above 128 KiB unless told otherwise, for the whole process.
csv.field_size_limit(sys.maxsize)

LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")

Row = tuple[int, list[str]]
"""The line a row begins on, counted from 1, and its cells."""


class ManifestError(ExportError):
    """A manifest that cannot be split; the message names lines and causes."""


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
    """

    manifest: str
    folder: str
    batches: list[Batch]
    unlisted: list[str]
    images: dict[str, str]

    @property
    def respelled(self) -> bool:
        """Whether a batch must call an image otherwise than the archive does."""
        return any(file != self.folder + name for name, file in self.images.items())


def partition_export(
    names: Collection[str],
    read_member: Callable[[str], bytes],
    image_column: str,
    batch_size: int,
    max_cells: int = DEFAULT_LIMITS.max_cells,
    unusable: Mapping[str, str] = MappingProxyType({}),
) -> Partition:
    """Check an archive's manifest against its files and cut it into batches.

    Args:
        names: of the archive's files.
        read_member: gives the bytes of one of them.
        image_column: the manifest's column that names the image, relative to the manifest.
        batch_size: rows of a batch.
        max_cells: of the manifest.
        unusable: further files, that no row may name, and why; as ``members.Names`` has them.

    Raises:
        ManifestError: if the manifest is not there, cannot be read, or does not fit the files.
    """
    name = find([*names, *unusable])
    if name in unusable:
        raise ManifestError(
            f"The archive has the manifest '{_short(name)}', which {unusable[name]}."
        )
    folder = folder_of(name)
    frame = read(read_member(name), max_cells)
    files = _by_spelling(folder, [*names, *unusable])
    check_images(frame, image_column, files)
    images = {
        image: files.get(image) or files[unicodedata.normalize("NFC", image)]
        for image in frame[image_column].unique()
    }
    _check_usable(frame[image_column], images, unusable)
    listed = {name, *images.values()}
    return Partition(
        manifest=name,
        folder=folder,
        batches=partition(frame, image_column, batch_size),
        unlisted=[other for other in (*names, *unusable) if other not in listed],
        images=images,
    )


def _by_spelling(folder: str, names: Iterable[str]) -> dict[str, str]:
    """The archive's files by what a row may call them: as the archive does, or composed (NFC)."""
    files = {name.removeprefix(folder): name for name in names if name.startswith(folder)}
    composed = {unicodedata.normalize("NFC", name): file for name, file in files.items()}
    return composed | files


def _check_usable(
    names: "pd.Series[str]", images: Mapping[str, str], unusable: Mapping[str, str]
) -> None:
    if not unusable:
        return
    wrong = names[names.map(lambda name: images[name] in unusable)]
    for line, name in wrong.items():
        more = f" ({len(wrong)} rows name such files)" if len(wrong) > 1 else ""
        raise ManifestError(
            f"The archive cannot be split as it is: line {line} of its manifest names "
            f"'{_short(name)}', which {unusable[images[name]]}{more}."
        )


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
    inner = next((name for name in names if name.lower().endswith(ARCHIVE_SUFFIXES)), None)
    if inner:
        raise ManifestError(
            f"The archive has no {MANIFEST}, but another archive inside, '{_short(inner)}'; "
            "send that one."
        )
    raise ManifestError(
        f"The archive has no {MANIFEST}, neither at its root nor in one folder around everything; "
        "export it again."
    )


def folder_of(name: str) -> str:
    """What stands before a manifest's name in the archive, and so before its images': ``name/``."""
    return name[: name.rfind("/") + 1]


def read(data: bytes, max_cells: int = DEFAULT_LIMITS.max_cells) -> pd.DataFrame:
    """The manifest as a table of text: every cell as it was written, the header as it was.

    Reads RFC 4180 with ``\\n`` or ``\\r\\n``, and what PHP's ``fputcsv`` writes with its default
    escape character, where a ``"`` right after a ``\\`` is not doubled
    (https://www.php.net/fputcsv). Lines without any character are passed over, as League\\Csv and
    Python's ``csv.DictReader`` do.

    Returns:
        A frame of ``str`` objects, one row an image. Its columns are the header's names,
        duplicates included; its index is the line of the manifest each row begins on.

    Raises:
        ManifestError: text that is not UTF-8, broken quoting, rows of the wrong width, no rows,
            more than ``max_cells`` cells.
    """
    text = _decode(data)
    # Counted before any is made: a hundred million empty cells are less than 64 MiB of text.
    if sum(map(text.count, (",", "\r", "\n", '\\"'))) > max_cells:
        raise ManifestError(
            f"The manifest has commas and line ends for more than {max_cells:,} cells, which no "
            "export has (MAX_CELLS); export it again."
        )
    records = _records(text)
    _, header = next(records, (1, []))
    if not header:
        raise ManifestError("The manifest is empty; export it again.")
    lines, rows = [], []
    problems: list[str] = []
    count = 0
    for line, cells in records:
        if len(cells) == len(header):
            lines.append(line)
            rows.append(cells)
            continue
        count += 1
        if count <= PROBLEMS_SHOWN:
            problems.append(f"line {line} has {len(cells)} cells instead of {len(header)}")
    if count:
        raise ManifestError(_problem("rows of the wrong length", problems, count))
    if not rows:
        raise ManifestError("The manifest has a header but no rows; there is nothing to split.")
    return pd.DataFrame(rows, index=pd.Index(lines, name="line"), columns=header, dtype=object)


def check_images(frame: pd.DataFrame, image_column: str, images: Collection[str]) -> None:
    """Make sure that every row names an image of the archive.

    Args:
        frame: as ``read`` returns it.
        image_column: the column that names the image.
        images: the archive's members, named relative to the manifest.

    Raises:
        ManifestError: the column is missing or there twice, a name is empty or not in ``images``.
    """
    found = list(frame.columns).count(image_column)
    if found != 1:
        having = "no column" if not found else f"{found} columns"
        raise ManifestError(
            f"The manifest has {having} named '{image_column}', one is needed to find the images; "
            f"its columns are: {_some(frame.columns, limit=20)}."
        )
    names = frame[image_column]
    composed = names.map(partial(unicodedata.normalize, "NFC"))
    known = names.isin(set(images)) | composed.isin(set(images))
    wrong = names[(names == "") | (names == MANIFEST) | ~known]
    if wrong.empty:
        return
    problems = [
        f"line {line} names '{_short(name)}', which is not in the archive"
        if name not in ("", MANIFEST)
        else f"line {line} names no image"
        if name == ""
        else f"line {line} names the manifest as its image"
        for line, name in wrong.iloc[:PROBLEMS_SHOWN].items()
    ]
    raise ManifestError(_problem("rows without their image", problems, len(wrong)))


def partition(frame: pd.DataFrame, image_column: str, batch_size: int) -> list[Batch]:
    """Cut the table into batches of ``batch_size`` rows, the last with what is left."""
    batches = []
    for part, start in enumerate(range(0, len(frame), batch_size), 1):
        rows = frame.iloc[start : start + batch_size]
        batches.append(
            Batch(
                part=part,
                first_row=start + 1,
                last_row=start + len(rows),
                manifest=_write(rows),
                images=tuple(rows[image_column].unique()),
            )
        )
    return batches


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(
            f"The manifest is not UTF-8: line {line} has the byte 0x{data[error.start]:02x}; "
            "save it as UTF-8 and zip it again."
        ) from error


def _records(text: str) -> Iterator[Row]:
    # Line by line: a StringIO would take four bytes for each character.
    lines = (line.group() for line in LINE.finditer(_rfc4180(text)))
    reader = csv.reader(lines, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ManifestError(
            f"The manifest cannot be read from line {line} on: {error}; "
            "a quote is probably missing or out of place."
        ) from error


def _rfc4180(text: str) -> str:
    """Double each ``"`` that PHP's ``fputcsv`` left single because it follows a ``\\``.

    A ``\\"`` is such a quote inside its cell, or the end of a cell that ends in ``\\``, or the
    first half of a pair. The next ``\\"`` tells which: every cell that holds a ``\\"`` is quoted,
    so that one stands between quotes again, while the end of the text does not. Each ``"`` on the
    way there opens, closes or is half of a pair; whether their number is odd says on which side of
    the quotes the way began. This decides every text of both writers, and leaves RFC 4180 as it is.
    """
    first, *pieces = text.split('\\"')
    written = [first]
    for number, piece in enumerate(pieces, 1):
        ends_between_quotes = number < len(pieces)
        begins_between_quotes = (piece.count('"') % 2 == 0) == ends_between_quotes
        written.append('\\""' if begins_between_quotes else '\\"')
        written.append(piece)
    return "".join(written)


def _write(frame: pd.DataFrame) -> bytes:
    """The rows as RFC 4180 with ``\\n``, as the export has it and Zooniverse's client reads it."""
    text = io.StringIO(newline="")
    plain = csv.writer(text, lineterminator="\n")
    # Before Python 3.13 the writer leaves a bare \r unquoted, and a reader would end the row there.
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in (frame.columns.tolist(), *frame.itertuples(index=False, name=None)):
        writer = quoted if any("\r" in cell for cell in row) else plain
        writer.writerow(row)
    return text.getvalue().encode()


def _problem(what: str, problems: Sequence[str], count: int) -> str:
    more = f" and {count - len(problems)} more" if count > len(problems) else ""
    return (
        f"The manifest has {what} ({count} in all): {'; '.join(problems)}{more}; "
        "correct the manifest or export it again."
    )


def _some(names: Iterable[str], limit: int = PROBLEMS_SHOWN) -> str:
    shown = list(islice(names, limit + 1))
    return ", ".join(_short(name) for name in shown[:limit]) + (", …" if len(shown) > limit else "")


def _short(name: str, limit: int = 80) -> str:
    return name if len(name) <= limit else name[:limit] + "…"
