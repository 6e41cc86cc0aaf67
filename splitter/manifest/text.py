"""The bytes of a manifest as rows of cells, and what they are if they are no such thing.

A manifest is read as BIOSPEX writes it: UTF-8, commas, RFC 4180 or PHP's ``fputcsv``. Where a
person's program has saved it in between, it is read if only one reading is possible, with a
warning, and refused with what the program made of it otherwise.
"""

import csv
import io
import re
import sys
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from splitter.archives.members import DEFAULT_LIMITS
from splitter.errors import ExportError
from splitter.sentences import Actor, Said, Sentence
from splitter.wording import count

# The csv module refuses cells above 128 KiB unless told otherwise, for the whole process.
csv.field_size_limit(sys.maxsize)

Row = tuple[int, list[str]]
"""The line a row begins on, counted from 1, and its cells."""

SAVE_AS = "save it as 'CSV UTF-8 (comma delimited)' and zip the export again"

UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}

# What a file is by its first bytes, where it is no text with commas: https://www.iana.org and
# https://en.wikipedia.org/wiki/List_of_file_signatures
SIGNATURES = {
    b"PK\x03\x04": "a workbook (.xlsx, .ods or .numbers)",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls)",
    b"%PDF": "a PDF",
    b"{\\rtf": "a rich-text document",
}
WEB_PAGE = re.compile(rb"\s*<(?:!doctype|html|table|\?xml)", re.IGNORECASE)

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "the character '|'"}

LINE = re.compile(rb"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
LINE_END = re.compile(rb"\r\n?|\n")

_QUOTED = rb'"[^"]*+(?:""[^"]*+)*+"'
_CELL = rb"(?:" + _QUOTED + rb"|[^\",\r\n]*+)"
RECORD = re.compile(rb"(?:" + _CELL + rb",)*+" + _CELL + rb"(?:\r\n?|\n|\Z)")
"""A line of RFC 4180, where a quotation mark stands in quoted cells only."""

BLANK_BEFORE_QUOTE = re.compile(
    rb"(" + _QUOTED + rb")|((?:\A|(?<=[,\r\n])) ++)(?=" + _QUOTED + rb"(?:[,\r\n]|\Z))"
)

# What is between two words that are written as one elsewhere.
JOINTS = re.compile(r"[\s_\-.]+")

LINES_ABOVE_HEADER = 20
"""How far down the line with the columns' names is looked for, to say where it stands."""


TOO_MANY_COLUMNS = Sentence(
    "manifest.too-many-columns",
    "The manifest has {columns} columns, and at most {limit} are read (MAX_COLUMNS); check that it "
    "is the table of images, and export it again.",
)


class ManifestError(ExportError):
    """A manifest that cannot be split; the message names lines and causes."""


COMPRESSED = Sentence(
    "manifest.compressed",
    "The manifest is a compressed file (gzip) with the name of a table; unpack it, and zip the "
    "export again with the table inside.",
)
SHORT_ROWS = Sentence(
    "manifest.rows-without-last-cells",
    "{count} rows of the manifest have no cells in the last columns, the first in line {line}, as "
    "Excel saves empty cells at the right end; they were read as empty cells.",
    Actor.NOBODY,
)
SHORT_HEADER = Sentence(
    "manifest.header-too-short",
    "The manifest's first line has {names} names of columns, and each row has {cells} cells: the "
    "header lacks the name of one column, probably the first, as R's write.table leaves it out. "
    "Add the name (in R: col.names=NA, or row.names=FALSE) and zip the export again.",
)
WHOLE_LINES = Sentence(
    "manifest.whole-lines-quoted",
    "The manifest has each whole line in quotation marks ({line}), so that it is one cell; save it "
    "as 'CSV UTF-8 (comma delimited)' and zip the export again.",
)
WRAPPED_NAME = Sentence(
    "manifest.wrapped-name",
    "The manifest calls its column {name} where {column} is needed: the names stand in quotation "
    "marks that are part of the text, or in a formula. Replace them with plain quotation marks, or "
    "remove them, and zip the export again.",
)


@dataclass(frozen=True)
class Table:
    """A manifest whose header makes sense.

    Attributes:
        header: the columns' names as they are written, duplicates included.
        column: position of the one that names the image.
        rows: each of the header's width; read once. It raises ``ManifestError`` in the end if some
            of the manifest's rows were not, or where the text cannot be read on.
        warnings: sentences; complete when the rows have been read.
        text: as it was read, RFC 4180 in UTF-8.
    """

    header: list[str]
    column: int
    rows: Iterator[Row]
    warnings: list[str | Said] = field(default_factory=list)
    text: bytes = b""


def read(
    data: bytes,
    image_column: str,
    max_cells: int = DEFAULT_LIMITS.max_cells,
    images: Collection[str] = (),
    max_columns: int = DEFAULT_LIMITS.max_columns,
) -> Table:
    """The manifest as a table of text: every cell as it was written, the header as it was.

    Reads RFC 4180 with ``\\n``, ``\\r\\n`` or ``\\r``, and what PHP's ``fputcsv`` writes with its
    default escape character, where a ``"`` right after a ``\\`` is not doubled
    (https://www.php.net/fputcsv). Lines without any character are passed over, as League\\Csv and
    Python's ``csv.DictReader`` do. With a warning, for no other reading is possible: UTF-16 that
    says so, the blank before a ``"`` (``csv`` has ``skipinitialspace`` for it, which Zooniverse's
    client sets), rows of empty cells, columns without a name or a cell.

    Args:
        image_column: its name, which is found with blanks and invisible characters around it.
        images: of the archive, by which a first line that is a row already is known.

    Raises:
        ManifestError: text that is not UTF-8, broken quoting, no image column or two, no rows,
            more than ``max_cells`` cells or ``max_columns`` columns; while the rows are read, rows
            of the wrong width.
    """
    warnings: list[str | Said] = []
    data, separator = _utf8(data, warnings)
    # Counted before any is made: a hundred million empty cells are less than 64 MiB of text.
    marks = (separator.encode(), b"\r", b"\n", b'\\"')
    if sum(map(data.count, marks)) > max_cells:
        raise ManifestError(
            f"The manifest has commas and line ends for more than {max_cells:,} cells, which no "
            "export has; export it again."
        )
    text = _quoted(data, separator, warnings)
    records = _records(text, separator)
    try:
        _, header = next(records, (1, []))
    except ManifestError as error:
        fault = _separator_fault(_first_line(text), image_column)
        raise ManifestError(fault or str(error)) from error
    if not header:
        raise ManifestError("The manifest is empty; export it again.")
    if len(header) > max_columns:
        raise ManifestError(TOO_MANY_COLUMNS, columns=len(header), limit=max_columns)
    if header[0].startswith("\ufeff"):  # behind empty lines
        header[0] = header[0].lstrip("\ufeff")
        warnings.append("The manifest's header begins with a byte order mark; it was cut.")
    column = _column(header, image_column, warnings)
    if column is None:
        raise ManifestError(_without_column(header, records, image_column, images))
    width = len(header)
    while width > column + 1 and not header[width - 1]:
        width -= 1
    # Nothing is dropped that has a cell.
    if width < len(header) and any(any(cells[width:]) for _, cells in _records(text, separator)):
        width = len(header)
    is_cut_off = not text.endswith((b"\n", b"\r"))
    rows = _rows(records, header, width, column, warnings, images, is_cut_off)
    return Table(header[:width], column, rows, warnings, text)


def bare(text: str) -> str:
    """``text`` without the blanks and invisible characters around it."""
    start, end = 0, len(text)
    while start < end and _invisible(text[start]):
        start += 1
    while start < end and _invisible(text[end - 1]):
        end -= 1
    return text[start:end]


def _visible(name: str) -> str:
    return "".join(letter for letter in bare(name) if unicodedata.category(letter) != "Cf")


def short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[:limit] + "…"


def refusal(what: str, problems: Sequence[str], count: int, cause: str = "") -> str:
    """The sentence of a manifest with ``count`` problems, the first of which are given."""
    more = f" and {count - len(problems)} more" if count > len(problems) else ""
    return (
        f"The manifest has {what} ({count} in all): {'; '.join(problems)}{more}; {cause}"
        "correct the manifest or export it again."
    )


def _invisible(character: str) -> bool:
    # Cf: zero-width blanks and joiners, the byte order mark, the soft hyphen.
    return character.isspace() or unicodedata.category(character) in ("Cf", "Zs")


def _utf8(data: bytes, warnings: list[str | Said]) -> tuple[bytes, str]:
    """The text as UTF-8 without a byte order mark, and what stands between its cells."""
    if data.startswith(b"\x1f\x8b"):
        raise ManifestError(COMPRESSED)
    for start, what in SIGNATURES.items():
        if data.startswith(start):
            raise ManifestError(
                f"The manifest is {what} with another name, not a text with commas; "
                f"open it in Excel or LibreOffice, {SAVE_AS}."
            )
    if WEB_PAGE.match(data):
        raise ManifestError(
            "The manifest is a web page or XML document, not a text with commas; export it again."
        )
    encoding = UTF16_BOMS.get(data[:2])
    if encoding:
        return _from_utf16(data, encoding, warnings)
    if data.startswith(2 * UTF8_BOM):
        warnings.append("The manifest begins with more than one byte order mark; they were cut.")
    while data.startswith(UTF8_BOM):
        data = data[len(UTF8_BOM) :]
    return data, ","


def _from_utf16(data: bytes, encoding: str, warnings: list[str | Said]) -> tuple[bytes, str]:
    try:
        text = data[2:].decode(encoding).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"The manifest is saved as UTF-16, or cut off, and cannot be read; {SAVE_AS}."
        ) from error
    first = text.lstrip("\r\n").partition("\n")[0]
    separator = "\t" if "\t" in first and "," not in first else ","
    if separator == "\t":
        warnings.append(
            "The manifest was saved as 'Unicode Text', UTF-16 with tabs; it was read as such."
        )
    else:
        warnings.append("The manifest was saved as UTF-16, not as UTF-8; it was read as such.")
    return text.encode(), separator


def _quoted(data: bytes, separator: str, warnings: list[str | Said]) -> bytes:
    """The text with quotation marks as RFC 4180 wants them."""
    if separator != ",":
        return data
    if b' "' in data and (cut := _without_blanks(data)) is not None:
        warnings.append(
            "The manifest has blanks between a comma and a quotation mark; they were passed over, "
            "as Zooniverse does."
        )
        data = cut
    text = _rfc4180(data)
    if text is not data and (position := _end_of_records(text)) < len(text):
        line = len(LINE_END.findall(text, 0, position)) + 1
        raise ManifestError(
            f"The manifest has a quotation mark after a backslash in line {line}, in a cell that "
            "is not in quotation marks, so that it can be read in two ways; export it again."
        )
    return text


def _end_of_records(text: bytes) -> int:
    """Where the first line begins that is not RFC 4180; the length of the text if all are."""
    position = 0
    while position < len(text) and (record := RECORD.match(text, position)):
        position = record.end()
    return position


def _without_blanks(data: bytes) -> bytes | None:
    """The text without blanks before a cell's opening quotation mark; None if it has none such."""
    if b'\\"' in data or _end_of_records(data) == len(data):
        return None
    cut = BLANK_BEFORE_QUOTE.sub(lambda found: found[1] or b"", data)
    return cut if cut != data and _end_of_records(cut) == len(cut) else None


def _rfc4180(text: bytes) -> bytes:
    """Double each ``"`` that PHP's ``fputcsv`` left single because it follows a ``\\``.

    A ``\\"`` is such a quote inside its cell, or the end of a cell that ends in ``\\``, or the
    first half of a pair. The next ``\\"`` tells which: every cell that holds a ``\\"`` is quoted,
    so that one stands between quotes again, while the end of the text does not. Each ``"`` on the
    way there opens, closes or is half of a pair; whether their number is odd says on which side of
    the quotes the way began. This decides every text of both writers, and leaves RFC 4180 as it is.
    """
    if b'\\"' not in text:
        return text
    first, *pieces = text.split(b'\\"')
    written = [first]
    for number, piece in enumerate(pieces, 1):
        ends_between_quotes = number < len(pieces)
        begins_between_quotes = (piece.count(b'"') % 2 == 0) == ends_between_quotes
        written.append(b'\\""' if begins_between_quotes else b'\\"')
        written.append(piece)
    return b"".join(written)


def _records(text: bytes, separator: str) -> Iterator[Row]:
    reader = csv.reader(_lines(text), strict=True, delimiter=separator)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ManifestError(
            f"The manifest cannot be read from line {line} on, where a quotation mark is probably "
            f"missing or out of place ({error}); correct that line or export it again."
        ) from error


def _lines(text: bytes) -> Iterator[str]:
    # A line at a time: no byte of a character is that of a line end (RFC 3629, section 3).
    found = (line.group() for line in LINE.finditer(text)) if b"\r" in text else io.BytesIO(text)
    for number, line in enumerate(found, 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise ManifestError(_not_utf8(text, line, number, error)) from error


def _not_utf8(text: bytes, line: bytes, number: int, error: UnicodeDecodeError) -> str:
    if text.count(0) * 3 > len(text):
        return f"The manifest is saved as UTF-16, not as UTF-8; {SAVE_AS}."
    # Letters with accents are C0 to FF in Windows-1252, and mostly 80 to 9F in MacRoman.
    high = [byte for byte in text if byte >= 0x80]
    mac = sum(byte < 0xA0 and not 0x91 <= byte <= 0x97 for byte in high) * 2 > len(high)
    encoding, name, menu = (
        ("mac_roman", "MacRoman", "CSV (Macintosh)")
        if mac
        else ("cp1252", "Windows-1252", "CSV (comma delimited)")
    )
    start = max(0, error.start - 10)
    seen = line[start : error.start + 10].decode(encoding, "replace").strip()
    return (
        f"The manifest is not UTF-8: Excel has probably saved it as '{menu}', which is {name}; "
        f"line {number} then has '{seen}'; {SAVE_AS}."
    )


def _column(header: Sequence[str], image_column: str, warnings: list[str | Said]) -> int | None:
    """The position of the image column, or None.

    Raises:
        ManifestError: if there are two.
    """
    found = [position for position, name in enumerate(header) if name == image_column]
    if not found:
        wanted = _visible(image_column)
        found = [position for position, name in enumerate(header) if _visible(name) == wanted]
        if len(found) == 1:
            warnings.append(
                f"The manifest's column '{image_column}' has blanks or invisible characters in its "
                "name; they were left as they are."
            )
    if len(found) > 1:
        raise ManifestError(
            f"The manifest has {len(found)} columns named '{image_column}' where one is needed to "
            f"find the images (its columns are: {_listed(header)}); rename or remove the others, "
            "and zip the export again."
        )
    return found[0] if found else None


def _without_column(
    header: list[str], records: Iterator[Row], image_column: str, images: Collection[str]
) -> str | Said:
    """The sentence of a manifest whose first line has no image column."""
    first = header[0].strip().lower()
    if first.startswith("sep="):
        return (
            f"The manifest begins with the line '{short(header[0].strip())}', which only Excel "
            f"understands, and is probably separated by that character; {SAVE_AS}."
        )
    line = ",".join(header)
    if "\0" in line and bare(image_column) in line.replace("\0", "").split(","):
        return f"The manifest is saved as UTF-16, not as UTF-8; {SAVE_AS}."
    if fault := _separator_fault(line.replace("\0", ""), image_column):
        return fault
    if wrapped := _wrapped(header, image_column):
        return wrapped
    folded = _folded(image_column)
    for name in header:
        if _folded(name) == folded:
            return (
                f"The manifest has no column named '{image_column}', but one named "
                f"'{short(name)}' (its columns are: {_listed(header)}); write that name as "
                f"'{image_column}' in the first line, and zip the export again."
            )
    if any(name in images for name in header):
        return (
            "The manifest has no line with the names of its columns: its first line is already "
            "the row of an image; export it again."
        )
    below = _header_below(records, image_column)
    if below:
        return (
            f"The manifest has its header, the names of its columns, in line {below}, below a "
            f"title ('{short(line)}'); delete what stands above it and zip the export again."
        )
    return (
        f"The manifest has no column named '{image_column}', which is needed to find the images "
        f"(its columns are: {_listed(header)}); give the column with the images' file names that "
        "name in the first line, and zip the export again."
    )


AROUND = " \t\"'`=\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u201b\u00ab\u00bb\u00b4"
"""Characters that programs put around a name: quotation marks of all kinds, a formula's ``=``."""


def unwrapped(name: str) -> str:
    """A name without what programs put around it."""
    return bare(name).strip(AROUND)


def _wrapped(header: Sequence[str], image_column: str) -> Said | None:
    """The sentence of a header whose names stand in further quotation marks."""
    if len(header) == 1 and image_column in map(unwrapped, header[0].split(",")):
        return WHOLE_LINES(line=header[0])
    for name in header:
        if name != image_column and unwrapped(name) == image_column:
            return WRAPPED_NAME(name=name, column=image_column)
    return None


def _header_below(records: Iterator[Row], image_column: str) -> int | None:
    try:
        for _, (line, cells) in zip(range(LINES_ABOVE_HEADER), records, strict=False):
            if any(
                bare(name.strip('"')) == bare(image_column)
                for cell in cells
                for name in re.split(r"[;\t|]", cell)
            ):
                return line
    except ManifestError:
        return None
    return None


def _first_line(text: bytes) -> str:
    lines = (found.group().strip() for found in LINE.finditer(text))
    return next(filter(None, lines), b"").decode(errors="replace")


def _separator_fault(line: str, image_column: str) -> str | None:
    """What a header is separated by, if not by commas."""
    wanted = bare(image_column).casefold()
    for separator, character in SEPARATORS.items():
        parts = {bare(name.strip().strip('"')).casefold() for name in line.split(separator)}
        if separator in line and wanted in parts:
            return _separated_by(character)
    return None


def _separated_by(what: str) -> str:
    hint = (
        ". Where Excel writes semicolons even then, set the list separator of Windows to a comma "
        "(Region, Additional settings), or choose it in LibreOffice"
        if what == "semicolons"
        else ""
    )
    return (
        f"The manifest is separated by {what}, not by commas, as Excel or another program saved "
        f"it; {SAVE_AS}{hint}."
    )


def _folded(name: str) -> str:
    visible = "".join(character for character in name if not _invisible(character))
    return JOINTS.sub("", visible).casefold()


def _listed(names: Sequence[str], limit: int = 20) -> str:
    return ", ".join(map(short, names[:limit])) + (", …" if len(names) > limit else "")


def _rows(
    records: Iterator[Row],
    header: list[str],
    width: int,
    column: int,
    warnings: list[str | Said],
    images: Collection[str],
    is_cut_off: bool,
) -> Iterator[Row]:
    """The rows of the header's width, ``width`` columns of each.

    Args:
        images: names that a row whose last cells are missing may name.
        is_cut_off: whether the last line has no end, so that it may be incomplete.
    """
    faults = _Faults(header, column)
    empty = short_rows = 0
    empty_line = short_line = rows = 0
    held: Row | None = None  # a short row, until it is known not to be the last line
    for line, cells in records:
        if held:
            yield held
            held = None
        if (len(cells) > 1 and not any(cells)) or (len(cells) != len(header) and _is_blank(cells)):
            empty += 1
            empty_line = empty_line or line
            continue
        rows += 1
        faults.last_line = line
        if len(cells) == len(header) or (
            width <= len(cells) < len(header) and not any(cells[width:])
        ):
            if cells[column] == header[column]:
                faults.header_again(line)
            elif not faults.count:
                yield line, cells[:width]
        elif column < len(cells) < width and cells[column] in images:
            # Excel leaves out trailing commas where the last columns are empty, 16 rows at a time:
            # https://learn.microsoft.com/troubleshoot/microsoft-365-apps/excel/column-delimiters-missing
            short_rows += 1
            short_line = short_line or line
            held = (line, [*cells, *[""] * (width - len(cells))])
        else:
            faults.note(line, cells)
    if held:
        if is_cut_off:
            faults.note(held[0], held[1][: held[1].index("") if "" in held[1] else None])
        elif not faults.count:
            yield held
    faults.check(rows)
    if not rows:
        raise ManifestError(
            "The manifest has a header but no rows, so there is nothing to split; export it again."
        )
    if short_rows:
        warnings.append(SHORT_ROWS(count=short_rows, line=short_line))
    if empty:
        warnings.append(
            f"{empty:,} {'row' if empty == 1 else 'rows'} of nothing but empty cells in the "
            f"manifest, the first in line {empty_line}; left out."
        )
    if width < len(header):
        more = len(header) - width
        warnings.append(
            f"{more} {'column' if more == 1 else 'columns'} at the manifest's right end without a "
            "name and without a cell; left out."
        )


def _is_blank(cells: Sequence[str]) -> bool:
    """Whether a row looks empty: blanks, no-break blanks, NUL or Ctrl-Z of old programs."""
    return not any(bare(cell.strip("\0\x1a")) for cell in cells)


TOTAL = re.compile(r"(?i)\b(?:sub)?(?:totale?s?|sum|summe|count|somme|suma|gesamt|anzahl)\b")


FILE_NAME = re.compile(r"\.[A-Za-z]\w{1,4}\Z")

MOST_OF_A_TOTAL = 3
"""Cells that a line with a total fills at most: a word, a number, a unit."""


def looks_like_total(cells: Sequence[str], column: int) -> bool:
    """Whether a row names no image, is mostly empty, and has a word for a total."""
    image = bare(cells[column]) if column < len(cells) else ""
    return (
        not FILE_NAME.search(image)
        and sum(map(bool, cells)) <= MOST_OF_A_TOTAL
        and any(TOTAL.search(cell) for cell in cells)
    )


class _Faults:
    """Rows of the wrong width, of which the first are named and all are counted."""

    SHOWN = 3

    def __init__(self, header: list[str], column: int) -> None:
        self._header = header
        self._column = column
        self._problems: list[str] = []
        self._again: list[int] = []
        self._last: tuple[int, list[str]] = (0, [])
        self._widths: set[int] = set()
        self.count = 0
        self.last_line = 0

    def note(self, line: int, cells: list[str]) -> None:
        if self._header[self._column] in cells:
            self.header_again(line)
            return
        self.count += 1
        self._last = (line, cells)
        self._widths.add(len(cells))
        if self.count <= self.SHOWN:
            self._problems.append(
                f"line {line} has {count(len(cells), 'cell')} instead of {len(self._header)}"
            )

    def header_again(self, line: int) -> None:
        self.count += 1
        self._again.append(line)

    def check(self, rows: int) -> None:
        """Refuse the manifest if one of its ``rows`` was noted."""
        if self._again:
            raise ManifestError(
                "The manifest has its header, the names of its columns, once more in line "
                f"{self._again[0]}: another manifest was pasted below the first; keep one, or "
                "delete that line if both belong to this export, and zip it again."
            )
        line, cells = self._last
        if self.count == 1 and line == self.last_line and looks_like_total(cells, self._column):
            raise ManifestError(total_line(line, cells))
        if self.count == rows > 1 and self._widths == {len(self._header) + 1}:
            raise ManifestError(SHORT_HEADER, names=len(self._header), cells=len(self._header) + 1)
        if self.count:
            raise ManifestError(refusal("rows of the wrong length", self._problems, self.count))


def total_line(line: int, cells: Sequence[str]) -> str:
    seen = short(", ".join(cell for cell in cells if cell))
    return (
        f"The manifest's last line, {line}, is not the row of an image but looks like a total "
        f"('{seen}'); delete it and zip the export again."
    )
