"""Reads the text of a manifest as rows of cells and finds each row's image.

Reads BIOSPEX's tables: UTF-8 with commas, as RFC 4180 or as PHP's ``fputcsv`` writes it. If another
program saved the table, it is read with a warning, provided that only one reading is possible.
Otherwise it raises ``UnreadableError``, which ``diagnosis`` explains.
"""

import csv
import io
import re
import sys
import unicodedata
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from splitter.archives import DEFAULT_LIMITS, Limits
from splitter.archives.members import plain
from splitter.errors import ExportError
from splitter.sentences import Actor, Cases, Problem, Sentence, Words, shown

# The csv module refuses cells above 128 KiB by default; the limit is process-wide.
csv.field_size_limit(sys.maxsize)

Row = tuple[int, list[str]]
"""A row's number in Excel and its cells."""

MANIFEST = "manifest.csv"
SUBJECT_COLUMN = "subjectId"

SAVE_AS = "save it as 'CSV UTF-8 (comma delimited)' and zip the export again"

LONGEST_NAME = 1024
"""Characters of the longest path that is normalised."""

UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")

START = re.compile(rb"\A(?:\xef\xbb\xbf|[\r\n])++")
"""Byte order marks and empty lines."""

LINE = re.compile(rb"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")

_QUOTED = rb'"[^"]*+(?:""[^"]*+)*+"'
_CELL = rb"(?:" + _QUOTED + rb"|[^\",\r\n]*+)"
CELL = re.compile(_CELL + rb",")
"""A cell of RFC 4180 and the comma after it."""

RECORD = re.compile(rb"(?:" + _CELL + rb",)*+" + _CELL + rb"(?:\r\n?|\n|\Z)")
"""One row of RFC 4180: quotation marks only in quoted cells."""

BLANK_BEFORE_QUOTE = re.compile(
    rb"(" + _QUOTED + rb")|((?:\A|(?<=[,\r\n])) ++)(?=" + _QUOTED + rb"(?:[,\r\n]|\Z))"
)

TOO_MANY_CELLS = Sentence(
    "manifest.too-many-cells",
    "The manifest has commas and line ends for more than {limit} cells (MAX_CELLS). No export has "
    "so many; export it again.",
)
TOO_MANY_COLUMNS = Sentence(
    "manifest.too-many-columns",
    "The manifest has {columns} columns, and at most {limit} are read (MAX_COLUMNS). Check that it "
    "is the table of images, and export it again.",
)
EXTRA_MARK = Sentence(
    "manifest.two-byte-order-marks",
    "The manifest has more than one byte order mark, or one below an empty line. It was removed.",
    Actor.NOBODY,
)
UTF_16 = Sentence(
    "manifest.utf-16",
    "The manifest was saved as UTF-16, such as Excel's 'Unicode Text', instead of UTF-8. It was "
    "read as such.",
    Actor.NOBODY,
)
BLANKS_BEFORE_MARKS = Sentence(
    "manifest.blanks-before-quotation-marks",
    "The manifest has blanks between commas and opening quotation marks. They were ignored, as "
    "Zooniverse ignores them.",
    Actor.NOBODY,
)
INVISIBLE_IN_NAME = Sentence(
    "manifest.invisible-characters-in-column-name",
    "The manifest's column {column} has blanks or invisible characters in its name. The name was "
    "left as it is.",
    Actor.NOBODY,
)
SHORT_ROWS = Sentence(
    "manifest.rows-without-last-cells",
    "The manifest has {number:row|rows} without cells in the last columns, as Excel saves empty "
    "cells at the right end: {first}. The missing cells were read as empty cells.",
    Actor.NOBODY,
)
EMPTY_ROWS = Sentence(
    "manifest.empty-rows",
    "The manifest has {number:row|rows} with nothing but empty cells: {first}. They were left out.",
    Actor.NOBODY,
)
EMPTY_COLUMNS = Sentence(
    "manifest.empty-columns",
    "The manifest has {number:column|columns} at its right end without a name and without content. "
    "They were left out.",
    Actor.NOBODY,
)
PATHS_REWRITTEN = Sentence(
    "manifest.image-paths-rewritten",
    "The manifest has {number:row|rows} whose image's path is written for one system only, such as "
    "with a backslash between folders: {first}. The batches have these paths with /, which every "
    "system reads.",
    Actor.NOBODY,
)


class ManifestError(ExportError):
    """A manifest that cannot be split. The message names rows and causes."""


class Fault(Enum):
    """The part of a manifest that cannot be read."""

    TEXT = auto()  # it is not UTF-8, or a quotation mark is out of place
    HEADER = auto()  # it is empty, or does not have exactly one image column
    ROWS = auto()  # there are none, or some do not fit the header or have no usable image


@dataclass(frozen=True)
class Files:
    """The files of an archive.

    Attributes:
        by_name: files by the names that a row may use: relative to the manifest, unchanged or in
            Unicode's composed form (NFC).
        names: all files.
        unusable: files that no batch may contain, with the reason.
    """

    by_name: Mapping[str, str] = field(default_factory=dict)
    names: Collection[str] = ()
    unusable: Mapping[str, Problem] = field(default_factory=dict)

    @classmethod
    def beside(
        cls, folder: str, names: Collection[str], unusable: Mapping[str, Problem]
    ) -> "Files":
        """The files of an archive whose manifest is in ``folder``."""
        files = {name.removeprefix(folder): name for name in names if name.startswith(folder)}
        composed = {_composed(name): file for name, file in files.items()}
        return cls(composed | files, names, unusable)

    def of(self, name: str) -> str:
        """The file for a name in the manifest, or an empty string."""
        file = self.by_name.get(name) or self.by_name.get(_composed(name), "")
        return "" if name == MANIFEST else file


def _composed(name: str) -> str:
    # Normalisation takes quadratic time for combining marks, and no file has a longer path.
    return unicodedata.normalize("NFC", name) if len(name) <= LONGEST_NAME else name


class FaultyRows(list[Row]):
    """The first rows with a fault, and the number of all of them."""

    MOST = 1000
    """Rows that are kept; a manifest may have ten million."""

    number = 0

    def append(self, row: Row) -> None:
        self.number += 1
        if len(self) < self.MOST:
            super().append(row)


@dataclass
class Table:
    """A manifest. The fields after ``full_width`` are complete once all rows have been read.

    Attributes:
        data: the original bytes.
        image_column: the name of the image column.
        files: the archive's files; empty if images are not checked.
        text: the table in UTF-8, converted to RFC 4180 where possible.
        is_strict: whether all of ``text`` is RFC 4180.
        header: the columns' names, unchanged, with duplicates.
        column: position of the image column.
        full_width: columns of the header, including empty ones at the right that are left out.
        numbers: each row's number in Excel.
        odd: rows whose image is not named after the subjectId: number, subjectId and image.
        misfits: rows that do not fit the header.
        missing: rows whose image is not in the archive.
        unusable: rows whose image no batch may contain.
    """

    data: bytes
    text: bytes
    image_column: str
    files: Files
    separator: str = ","
    is_strict: bool = True
    header: list[str] = field(default_factory=list)
    column: int = 0
    full_width: int = 0
    warnings: list[Problem] = field(default_factory=list)
    numbers: "array[int]" = field(default_factory=lambda: array("L"))
    odd: list[tuple[int, str, str]] = field(default_factory=list)
    misfits: FaultyRows = field(default_factory=FaultyRows)
    missing: FaultyRows = field(default_factory=FaultyRows)
    unusable: FaultyRows = field(default_factory=FaultyRows)

    @property
    def subject(self) -> int | None:
        """Position of the subjectId column."""
        return self.header.index(SUBJECT_COLUMN) if SUBJECT_COLUMN in self.header else None

    def where(self, number: int, cells: Sequence[str]) -> Words:
        """The words for a row: its number in Excel and its subjectId."""
        subject = self.subject
        return row_words(number, cells[subject] if subject is not None and cells[subject:] else "")

    def records(self) -> Iterator[Row]:
        """The header and the rows, without empty lines.

        Raises:
            UnreadableError: at the first line that is not UTF-8 or has a misplaced quotation mark.
        """
        number = 0
        reader = csv.reader(_lines(self.text), strict=True, delimiter=self.separator)
        try:
            for number, cells in enumerate(reader, 1):
                if cells:
                    yield number, cells
        except (csv.Error, UnicodeDecodeError) as error:
            raise UnreadableError(Fault.TEXT, self, number + 1, error) from error

    @property
    def rows(self) -> Iterator[Row]:
        """The rows, each as wide as the header and with an image of the archive; to be read once.

        Raises:
            UnreadableError: after the last row, if rows do not fit or there are none.
        """
        files, column, subject = self.files, self.column, self.subject
        by_name, width, full_width = files.by_name, len(self.header), self.full_width
        empty, short, rewritten = Cases(), Cases(), Cases()
        number, last_short = 1, (0, [""])
        records = self.records()
        next(records)
        for number, cells in records:
            image = cells[column] if len(cells) == full_width else ""
            if not image or image.isspace():
                if self._is_empty(cells):
                    empty.add(where=row_words(number))
                    continue
                if not self._is_completable(cells):
                    self.misfits.append((number, cells))
                    continue
                if len(cells) < width:
                    short.add(where=self.where(number, cells))
                    last_short = number, cells
                cells = cells[:width] + [""] * (width - len(cells))
                image = cells[column]
            elif full_width != width:
                cells = cells[:width]
            if image == self.header[column]:  # a second header
                self.misfits.append((number, cells))
                continue
            self.numbers.append(number)
            if by_name and (image not in by_name or image == MANIFEST):
                if not files.of(image):
                    image = plain(image)
                if not files.of(image):
                    self.missing.append((number, cells))
                    continue
            if files.unusable and files.of(image) in files.unusable:
                self.unusable.append((number, cells))
                continue
            if image != cells[column]:
                cells[column] = image
                rewritten.add(where=self.where(number, cells))
            if subject is not None and image[:-4] != cells[subject]:
                self.odd.append((number, cells[subject], image))
            yield number, cells
        # A short last line without a line end may be cut off.
        is_cut = last_short[0] == number and not self.text.endswith((b"\n", b"\r"))
        if is_cut and not self.misfits:
            self.misfits.append(last_short)
        if self.misfits or self.missing or self.unusable or not self.numbers:
            raise UnreadableError(Fault.ROWS, self)
        found = ((SHORT_ROWS, short), (EMPTY_ROWS, empty), (PATHS_REWRITTEN, rewritten))
        self.warnings += [sentence(**cases.values()) for sentence, cases in found if cases.number]

    def _is_empty(self, cells: Sequence[str]) -> bool:
        return is_blank(cells) and (len(cells) > 1 or self.full_width > 1)

    def _is_completable(self, cells: Sequence[str]) -> bool:
        """Whether the row differs from the header only by empty cells at the right end.

        Excel omits trailing commas where the last columns are empty, 16 rows at a time:
        https://learn.microsoft.com/troubleshoot/microsoft-365-apps/excel/column-delimiters-missing
        """
        width = len(self.header)
        if width <= len(cells) <= self.full_width:
            return not any(cells[width:])
        return self.column < len(cells) < width and cells[self.column] in self.files.by_name


@dataclass(eq=False, repr=False)
class UnreadableError(Exception):
    """A manifest that cannot be read. ``diagnosis`` turns it into a sentence.

    Attributes:
        row: the faulty row's number in Excel, if the text is at fault.
        cause: the error of the csv module or the decoder.
    """

    fault: Fault
    table: Table
    row: int = 0
    cause: Exception | None = None

    def __str__(self) -> str:
        return f"{self.fault.name} in row {self.row}"  # not the whole manifest


def read(
    data: bytes,
    image_column: str,
    files: Files | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Table:
    """The manifest as a table. Cells and header are unchanged.

    Reads RFC 4180 with ``\\n``, ``\\r\\n`` or ``\\r``, and PHP's ``fputcsv`` with its default
    escape character, which does not double a ``"`` after a ``\\`` (https://www.php.net/fputcsv).
    Ignores empty lines, as League\\Csv and Python's ``csv.DictReader`` do. If no other reading is
    possible, these are read with a warning: UTF-16 with a byte order mark, blanks before a ``"``
    (Zooniverse's client reads with ``skipinitialspace``), rows of empty cells, columns without name
    and content.

    Args:
        image_column: the column's name; blanks and invisible characters around it are ignored.
        files: the archive's files; without them, images are not checked.

    Raises:
        UnreadableError: if the table has no header with exactly one image column.
        ManifestError: if it exceeds ``limits``.
    """
    table = Table(data, data, image_column, files or Files())
    _decode(table)
    # Counted before parsing: a hundred million empty cells take less than 64 MiB of text.
    marks = (table.separator.encode(), b"\r", b"\n", b'\\"')
    if sum(map(table.text.count, marks)) > limits.max_cells:
        raise ManifestError(TOO_MANY_CELLS, limit=limits.max_cells)
    _correct_quotation_marks(table)
    _, header = next(table.records(), (1, []))
    if len(header) > limits.max_columns:
        raise ManifestError(TOO_MANY_COLUMNS, columns=len(header), limit=limits.max_columns)
    table.header = header
    table.column = _image_column(table)
    table.full_width = width = len(header)
    while width > table.column + 1 and not header[width - 1]:
        width -= 1
    # A column is left out only if it is empty.
    if header[width:] and not any(any(cells[width:]) for _, cells in table.records()):
        table.header = header[:width]
        table.warnings.append(EMPTY_COLUMNS(number=len(header) - width))
    return table


def row_words(number: int, subject: str = "") -> Words:
    """``row 17 (subjectId '5f01')``, for the middle of a sentence."""
    return Words(f"row {number} (subjectId {shown(subject)})" if subject else f"row {number}")


def bare(text: str) -> str:
    """``text`` without surrounding blanks and invisible characters."""
    start, end = 0, len(text)
    while start < end and is_invisible(text[start]):
        start += 1
    while start < end and is_invisible(text[end - 1]):
        end -= 1
    return text[start:end]


def is_invisible(character: str) -> bool:
    # Cf: zero-width blanks and joiners, the byte order mark, the soft hyphen.
    return character.isspace() or unicodedata.category(character) in ("Cf", "Zs")


def is_blank(cells: Sequence[str]) -> bool:
    """Whether all cells look empty. Old programs leave NUL or Ctrl-Z."""
    return not any(bare(cell.strip("\0\x1a")) for cell in cells)


def strict_part(text: bytes) -> tuple[int, int]:
    """The position of the first row that is not RFC 4180 and the number of rows before it."""
    position = number = 0
    while position < len(text) and (record := RECORD.match(text, position)):
        position = record.end()
        number += 1
    return position, number


def _decode(table: Table) -> None:
    """Convert the text to UTF-8 without a byte order mark."""
    data = table.data
    if data.startswith(UTF16_BOMS):
        try:
            text = data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise UnreadableError(Fault.TEXT, table, cause=error) from error
        first = text.lstrip("\r\n").partition("\n")[0]
        table.separator = "\t" if "\t" in first and "," not in first else ","
        table.warnings.append(UTF_16())
        data = text.encode()
    table.text = START.sub(lambda found: found[0].replace(UTF8_BOM, b""), data, count=1)
    if table.text != data.removeprefix(UTF8_BOM):
        table.warnings.append(EXTRA_MARK())


def _correct_quotation_marks(table: Table) -> None:
    """Write the text's quotation marks as in RFC 4180, if only one reading is possible."""
    if table.separator != "," or b'"' not in table.text:
        return
    text = _rfc4180(table.text)
    end, number = strict_part(text)
    if end < len(text):
        if text is not table.text:
            table.text = text
            raise UnreadableError(Fault.TEXT, table, row=number + 1)
        cut = BLANK_BEFORE_QUOTE.sub(lambda found: found[1] or b"", text)
        table.is_strict = strict_part(cut)[0] == len(cut)
        if table.is_strict:
            table.warnings.append(BLANKS_BEFORE_MARKS())
            text = cut
    table.text = text


def _rfc4180(text: bytes) -> bytes:
    """The text with every ``"`` doubled that PHP's ``fputcsv`` left single after a ``\\``.

    A ``\\"`` is a single quote inside a cell, the end of a cell that ends in ``\\``, or the first
    half of a doubled quote. The text up to the next ``\\"`` decides which. A cell with a ``\\"`` is
    always quoted, so the next ``\\"`` is inside quotes, and the end of the text is outside. Each
    ``"`` in between opens a cell, closes a cell or is half of a doubled quote. If their number is
    odd, exactly one end of the text between is inside quotes. This is correct for the output of
    both writers and does not change RFC 4180.
    """
    if b'\\"' not in text:
        return text
    first, *pieces = text.split(b'\\"')
    written = [first]
    for number, piece in enumerate(pieces, 1):
        ends_inside = number < len(pieces)
        begins_inside = (piece.count(b'"') % 2 == 0) == ends_inside
        written.append(b'\\""' if begins_inside else b'\\"')
        written.append(piece)
    return b"".join(written)


def _lines(text: bytes) -> Iterator[str]:
    # Decoded line by line: in UTF-8, no other character has the byte of a line end (RFC 3629,
    # section 3).
    found = (line.group() for line in LINE.finditer(text)) if b"\r" in text else io.BytesIO(text)
    return map(bytes.decode, found)


def _image_column(table: Table) -> int:
    name = table.image_column
    found = [position for position, each in enumerate(table.header) if each == name]
    if not found:
        found = [place for place, each in enumerate(table.header) if visible(each) == visible(name)]
        if len(found) == 1:
            table.warnings.append(INVISIBLE_IN_NAME(column=name))
    if len(found) != 1:
        raise UnreadableError(Fault.HEADER, table)
    return found[0]


def visible(name: str) -> str:
    """A name without invisible characters, and without blanks around it."""
    return "".join(letter for letter in bare(name) if unicodedata.category(letter) != "Cf")
