"""Finds a manifest, checks it against the archive's files and cuts it into batches."""

import csv
import hashlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from types import MappingProxyType

import pandas as pd

from splitter.archives import DEFAULT_LIMITS, Limits
from splitter.manifest import diagnosis
from splitter.manifest.checks import CHECKS
from splitter.manifest.text import MANIFEST, Files, ManifestError, Table, UnreadableError, read
from splitter.sentences import MAX_CASES, Problem, Sentence

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
        part: the batch's number, from 1.
        first_row, last_row: rows of the export's manifest, from 1, both included.
        manifest: ``manifest.csv`` in UTF-8.
        images: each image once, in the order of the rows.
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
        """The metadata of the batch's S3 object. Equal metadata means equal content."""
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
        folder: the folder of the manifest and the images, ``name/`` or empty.
        batches: in order; together they have every row once.
        unlisted: files that no row names, including unusable ones.
        images: maps each name in the manifest to the archive's file. The names differ by the folder
            and, if the archive uses Unicode's NFD, by the form of accents.
        column: position of the image column.
        numbers: each row's number in Excel, which counts empty rows.
        subject: position of the subjectId column.
        warnings: about the manifest.
        zooniverse: images and rows that Zooniverse will refuse; see ``splitter.zooniverse``.
    """

    manifest: str
    folder: str
    batches: list[Batch]
    unlisted: list[str]
    images: dict[str, str]
    column: int = 0
    numbers: Sequence[int] = ()
    subject: int | None = None
    warnings: tuple[str | Problem, ...] = ()
    zooniverse: tuple[Problem, ...] = ()


def partition_export(
    names: Collection[str],
    read_member: Callable[[str], bytes],
    image_column: str,
    batch_size: int,
    unusable: Mapping[str, Problem] = MappingProxyType({}),
    limits: Limits = DEFAULT_LIMITS,
) -> Partition:
    """Check an archive's manifest against its files and cut it into batches.

    Args:
        names: the archive's usable files.
        read_member: returns the bytes of a file.
        image_column: the column with each image's path, relative to the manifest.
        batch_size: rows in a batch.
        unusable: files that no row may name, with the reason; see ``members.Names``.

    Raises:
        ManifestError: if the manifest is missing, cannot be read or does not match the files.
    """
    every = [*names, *unusable]
    name = find(every)
    if name in unusable:
        raise ManifestError(UNUSABLE, name=name, reason=unusable[name])
    folder = name[: name.rfind("/") + 1]
    files = Files.beside(folder, every, unusable)
    try:
        table = read(read_member(name), image_column, files, limits)
        batches = list(partition(table, batch_size))
    except UnreadableError as failure:
        raise diagnosis.explain(failure) from failure.cause
    used = {image: files.of(image) for batch in batches for image in batch.images}
    listed = {name, *used.values()}
    left = {other.removeprefix(folder) for other in names if other not in listed}
    found = [check(table, left) for check in CHECKS]
    return Partition(
        manifest=name,
        folder=folder,
        batches=batches,
        unlisted=[other for other in every if other not in listed],
        images=used,
        column=table.column,
        numbers=table.numbers,
        subject=table.subject,
        warnings=(*table.warnings, *filter(None, found)),
    )


def find(names: Collection[str]) -> str:
    """The name of the manifest: ``manifest.csv``, or else the only CSV file.

    Looks at the root first, then one folder deep.

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
                raise ManifestError(TWO_MANIFESTS, names=found[:MAX_CASES])
    raise diagnosis.explain_names(names)


def partition(table: Table, batch_size: int) -> Iterator[Batch]:
    """Cut a table into batches of ``batch_size`` rows; the last one may be smaller.

    Builds one frame per batch: a frame of the whole table takes three times the memory of its text.
    """
    cells = (cells for _, cells in table.rows)
    part = start = 0
    while taken := list(islice(cells, batch_size)):
        part += 1
        frame = pd.DataFrame(taken, columns=table.header, dtype=object)
        yield Batch(
            part=part,
            first_row=start + 1,
            last_row=start + len(frame),
            manifest=_write(frame),
            images=tuple(frame.iloc[:, table.column].unique()),
        )
        start += len(frame)


def _write(frame: pd.DataFrame) -> bytes:
    """The rows as RFC 4180 with ``\\n``, like the export."""
    text = io.StringIO(newline="")
    plain = csv.writer(text, lineterminator="\n")
    # Before Python 3.13 the writer does not quote a bare \r, and a reader would end the row there.
    # Zooniverse's client drops leading blanks of an unquoted cell.
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in (frame.columns.tolist(), *frame.itertuples(index=False, name=None)):
        cells = "\0".join(row)
        delicate = "\r" in cells or "\0 " in cells or cells[:1] == " "
        (quoted if delicate else plain).writerow(row)
    return text.getvalue().encode()
