"""Reads the text of a manifest as rows of cells and finds each row's image.

Reads BIOSPEX's tables: UTF-8 with commas, as RFC 4180 or as PHP's ``fputcsv`` writes it. If another
program saved the table, it is read with a warning, provided that only one reading is possible.
Otherwise the first problem raises ``UnreadableError``, which ``diagnosis`` explains.
"""

import csv
import io
import re
import sys
import unicodedata
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
UTF16_BOMS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}

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
TWO_MARKS = Sentence(
    "manifest.two-byte-order-marks",
    "The manifest begins with more than one byte order mark. They were removed.",
    Actor.NOBODY,
)
MARK_IN_HEADER = Sentence(
    "manifest.byte-order-mark-in-header",
    "The manifest has a byte order mark in front of its first column's name, below an empty line. "
    "It was removed.",
    Actor.NOBODY,
)
UNICODE_TEXT = Sentence(
    "manifest.unicode-text",
    "The manifest was saved as 'Unicode Text', UTF-16 with tabs. It was read as such.",
    Actor.NOBODY,
)
UTF_16 = Sentence(
    "manifest.utf-16",
    "The manifest was saved as UTF-16 instead of UTF-8. It was read as such.",
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
    """The reason why a manifest cannot be read."""

    ENCODING = auto()  # the bytes are not UTF-8
    TWO_READINGS = auto()  # a quotation mark after a backslash may end its cell or belong to it
    QUOTES = auto()  # a quotation mark is missing or out of place
    EMPTY = auto()  # there is no header
    NO_COLUMN = auto()  # the header has no image column
    TWO_COLUMNS = auto()  # the header has more than one image column
    NO_ROWS = auto()  # there are no rows below the header
    WIDTH = auto()  # a row has more or fewer cells than the header
    IMAGE = auto()  # a row names no usable image of the archive


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


@dataclass(frozen=True)
class Source:
    """A manifest's text.

    Attributes:
        data: the original bytes.
        text: the table in UTF-8, converted to RFC 4180 where possible.
        image_column: the name of the image column.
        files: the archive's files; empty if images are not checked.
        is_strict: whether all of ``text`` is RFC 4180.
    """

    data: bytes
    text: bytes
    image_column: str
    files: Files = field(default_factory=Files)
    separator: str = ","
    is_strict: bool = True

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
        except csv.Error as error:
            raise UnreadableError(Fault.QUOTES, self, row=number + 1, cause=error) from error
        except UnicodeDecodeError as error:
            raise UnreadableError(Fault.ENCODING, self, row=number + 1, cause=error) from error


@dataclass
class Table:
    """A manifest with a valid header.

    ``warnings``, ``numbers`` and ``odd`` are complete once all rows have been read.

    Attributes:
        header: the columns' names, unchanged, with duplicates.
        column: position of the image column.
        full_width: columns of the header, including empty ones at the right that are left out.
        numbers: each row's number in Excel.
        odd: rows whose image is not named after the subjectId: number, subjectId and image.
    """

    source: Source
    header: list[str]
    column: int
    full_width: int
    warnings: list[Problem] = field(default_factory=list)
    numbers: "array[int]" = field(default_factory=lambda: array("L"))
    odd: list[tuple[int, str, str]] = field(default_factory=list)

    @property
    def subject(self) -> int | None:
        """Position of the subjectId column."""
        return self.header.index(SUBJECT_COLUMN) if SUBJECT_COLUMN in self.header else None

    def where(self, number: int, cells: Sequence[str]) -> Words:
        """The words for a row: its number in Excel and its subjectId."""
        subject = self.subject
        return row_words(number, cells[subject] if subject is not None and cells[subject:] else "")

    @property
    def rows(self) -> Iterator[Row]:
        """The rows, each as wide as the header and with an image of the archive.

        Raises:
            UnreadableError: at the first row that does not fit, or if there are no rows.
        """
        files, column, subject = self.source.files, self.column, self.subject
        by_name, unusable = files.by_name, files.unusable
        self.numbers, self.odd = array("L"), []
        rewritten = Cases()
        for number, cells in self.shaped():
            image = cells[column]
            if by_name and (image not in by_name or image == MANIFEST):
                if not files.of(image):
                    cells[column] = image = plain(image)
                    rewritten.add(where=self.where(number, cells))
                if not files.of(image):
                    raise UnreadableError(Fault.IMAGE, self.source, self, row=number)
            if unusable and files.of(image) in unusable:
                raise UnreadableError(Fault.IMAGE, self.source, self, row=number)
            if subject is not None and image[:-4] != cells[subject]:
                self.odd.append((number, cells[subject], image))
            self.numbers.append(number)
            yield number, cells
        if rewritten.number:
            self.warnings.append(PATHS_REWRITTEN(**rewritten.values()))

    def shaped(self) -> Iterator[Row]:
        """The rows, each as wide as the header. Images are not checked.

        Raises:
            UnreadableError: at the first row that does not fit, or if there are no rows.
        """
        width, full_width = len(self.header), self.full_width
        column, name = self.column, self.header[self.column]
        empty, short = Cases(), Cases()
        last = 0
        records = self.source.records()
        next(records)
        for number, cells in records:
            if len(cells) == full_width and cells[column] and not cells[column].isspace():
                if cells[column] == name:  # a second header
                    raise UnreadableError(Fault.WIDTH, self.source, self, row=number)
                last = number
                yield number, cells if full_width == width else cells[:width]
            elif self.is_empty(cells):
                empty.add(where=row_words(number))
            elif not self.is_completable(cells):
                raise UnreadableError(Fault.WIDTH, self.source, self, row=number)
            else:
                last = number
                if len(cells) < width:
                    short.add(where=self.where(number, cells))
                yield number, cells[:width] + [""] * (width - len(cells))
        if not last:
            raise UnreadableError(Fault.NO_ROWS, self.source, self)
        # A short last line without a line end may be cut off.
        is_short = last == number and len(cells) < width
        if is_short and not self.source.text.endswith((b"\n", b"\r")):
            raise UnreadableError(Fault.WIDTH, self.source, self, row=last)
        if short.number:
            self.warnings.append(SHORT_ROWS(**short.values()))
        if empty.number:
            self.warnings.append(EMPTY_ROWS(**empty.values()))
        if more := full_width - width:
            self.warnings.append(EMPTY_COLUMNS(number=more))

    def is_empty(self, cells: Sequence[str]) -> bool:
        """Whether a row has only blanks and is left out."""
        return is_blank(cells) and (len(cells) > 1 or self.full_width > 1)

    def is_completable(self, cells: Sequence[str]) -> bool:
        """Whether the row differs from the header only by empty cells at the right end.

        Excel omits trailing commas where the last columns are empty, 16 rows at a time:
        https://learn.microsoft.com/troubleshoot/microsoft-365-apps/excel/column-delimiters-missing
        """
        width = len(self.header)
        if width <= len(cells) <= self.full_width:
            return not any(cells[width:])
        return self.column < len(cells) < width and cells[self.column] in self.source.files.by_name


@dataclass(eq=False, repr=False)
class UnreadableError(Exception):
    """A manifest that cannot be read. ``diagnosis`` turns it into a sentence.

    Attributes:
        begun: the table, if its header was read.
        row: the first faulty row's number in Excel.
        cause: the error of the csv module or the decoder.
    """

    fault: Fault
    source: Source
    begun: Table | None = None
    row: int = 0
    cause: Exception | None = None

    def __str__(self) -> str:
        return f"{self.fault.name} in row {self.row}"  # not the whole manifest

    @property
    def table(self) -> Table:
        """The table, for faults behind the header."""
        if self.begun is None:
            raise ValueError(f"No header was read: {self.fault}")
        return self.begun


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
    warnings: list[Problem] = []
    source = _decoded(Source(data, data, image_column, files or Files()), warnings)
    # Counted before parsing: a hundred million empty cells take less than 64 MiB of text.
    marks = (source.separator.encode(), b"\r", b"\n", b'\\"')
    if sum(map(source.text.count, marks)) > limits.max_cells:
        raise ManifestError(TOO_MANY_CELLS, limit=limits.max_cells)
    source = _quoted(source, warnings)
    _, header = next(source.records(), (1, []))
    if not header:
        raise UnreadableError(Fault.EMPTY, source)
    if len(header) > limits.max_columns:
        raise ManifestError(TOO_MANY_COLUMNS, columns=len(header), limit=limits.max_columns)
    if header[0].startswith("\ufeff"):  # below empty lines
        header[0] = header[0].lstrip("\ufeff")
        warnings.append(MARK_IN_HEADER())
    column = _column(source, header, warnings)
    width = len(header)
    while width > column + 1 and not header[width - 1]:
        width -= 1
    # A column is left out only if it is empty.
    if width < len(header) and any(any(cells[width:]) for _, cells in source.records()):
        width = len(header)
    return Table(source, header[:width], column, len(header), warnings)


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


def _decoded(source: Source, warnings: list[Problem]) -> Source:
    """The source with ``text`` in UTF-8, without a byte order mark."""
    data = source.data
    encoding = UTF16_BOMS.get(data[:2])
    if not encoding:
        if data.startswith(2 * UTF8_BOM):
            warnings.append(TWO_MARKS())
        while data.startswith(UTF8_BOM):
            data = data[len(UTF8_BOM) :]
        return replace(source, text=data)
    try:
        text = data[2:].decode(encoding).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise UnreadableError(Fault.ENCODING, source, cause=error) from error
    first = text.lstrip("\r\n").partition("\n")[0]
    separator = "\t" if "\t" in first and "," not in first else ","
    warnings.append(UNICODE_TEXT() if separator == "\t" else UTF_16())
    return replace(source, text=text.encode(), separator=separator)


def _quoted(source: Source, warnings: list[Problem]) -> Source:
    """The source with quotation marks as in RFC 4180, if only one reading is possible."""
    if source.separator != ",":
        return source
    text = _rfc4180(source.text)
    end, number = strict_part(text) if b'"' in text else (len(text), 0)
    is_strict = end == len(text)
    if not is_strict:
        if text is not source.text:
            read_so_far = replace(source, text=text)
            raise UnreadableError(Fault.TWO_READINGS, read_so_far, row=number + 1)
        cut = BLANK_BEFORE_QUOTE.sub(lambda found: found[1] or b"", text)
        if cut != text and strict_part(cut)[0] == len(cut):
            warnings.append(BLANKS_BEFORE_MARKS())
            text, is_strict = cut, True
    return replace(source, text=text, is_strict=is_strict)


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


def _column(source: Source, header: Sequence[str], warnings: list[Problem]) -> int:
    name = source.image_column
    found = [position for position, each in enumerate(header) if each == name]
    if not found:
        wanted = _visible(name)
        found = [position for position, each in enumerate(header) if _visible(each) == wanted]
        if len(found) == 1:
            warnings.append(INVISIBLE_IN_NAME(column=name))
    if len(found) != 1:
        raise UnreadableError(Fault.TWO_COLUMNS if found else Fault.NO_COLUMN, source)
    return found[0]


def _visible(name: str) -> str:
    return "".join(letter for letter in bare(name) if unicodedata.category(letter) != "Cf")
