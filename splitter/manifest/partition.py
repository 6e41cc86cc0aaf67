"""The manifest of an export: find it, check it against the images, cut it into batches."""

import csv
import hashlib
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from types import MappingProxyType

import pandas as pd

from splitter.archives.members import DEFAULT_LIMITS
from splitter.manifest import diagnosis
from splitter.manifest.checks import CHECKS
from splitter.manifest.text import MANIFEST, Files, ManifestError, Row, UnreadableError, read
from splitter.sentences import Said, Sentence

SHOWN = 3
"""Names that a sentence shows."""

TWO_MANIFESTS = Sentence(
    "manifest.more-than-one",
    "The archive has more than one manifest ({names}). Keep the right one and export or zip it "
    "again.",
)
UNUSABLE = Sentence("manifest.unusable", "The archive has the manifest {name}, which {reason}.")


@dataclass(frozen=True)
class Batch:
    """The content of one batch ZIP.

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
        """The metadata of the batch's object: its origin; equal values mean equal content."""
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
        folder: the manifest's folder in the archive, and so the images': nothing, or ``name/``.
        batches: in order; together they hold every row once.
        unlisted: files of the archive that no row names, unusable ones among them.
        images: the archive's file of each name that the rows use. The two differ by the folder, and
            where the archive writes accents in another way (Unicode's NFD against its NFC).
        column: position of the column that names the image.
        numbers: of each row in the manifest, as Excel shows it: line breaks in cells and empty rows
            count there.
        subject: position of the column with the specimens' ids.
        warnings: about the manifest.
        zooniverse: about images and rows that Zooniverse will refuse, and
        zooniverse_notes: advice for the upload; see ``splitter.zooniverse``.
    """

    manifest: str
    folder: str
    batches: list[Batch]
    unlisted: list[str]
    images: dict[str, str]
    column: int = 0
    numbers: Sequence[int] = ()
    subject: int | None = None
    warnings: tuple[str | Said, ...] = ()
    zooniverse: tuple[Said, ...] = ()
    zooniverse_notes: tuple[Said, ...] = ()


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
        raise ManifestError(UNUSABLE, name=name, reason=unusable[name])
    folder = folder_of(name)
    files = Files.beside(folder, every, unusable)
    try:
        table = read(read_member(name), image_column, max_cells, files, max_columns)
        batches = list(partition(table.header, table.rows, table.column, batch_size))
    except UnreadableError as failure:
        raise diagnosis.explain(failure) from failure.cause
    used = {image: files.of(image) for batch in batches for image in batch.images}
    listed = {name, *used.values()}
    left = {other.removeprefix(folder) for other in names if other not in listed}
    warnings = list(table.warnings)
    for check in CHECKS:
        warnings += check(table, left)
    return Partition(
        manifest=name,
        folder=folder,
        batches=batches,
        unlisted=[other for other in every if other not in listed],
        images=used,
        column=table.column,
        numbers=table.numbers,
        subject=table.subject,
        warnings=tuple(warnings),
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
                raise ManifestError(TWO_MANIFESTS, names=found[:SHOWN])
    raise diagnosis.explain_names(names)


def folder_of(name: str) -> str:
    """The folder of a manifest in the archive, and so of its images: ``name/`` or nothing."""
    return name[: name.rfind("/") + 1]


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
