"""Finds the cause of an unreadable manifest and returns its sentence.

``explain`` runs the checks of a fault in order and takes the first sentence.
"""

import csv
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice

from splitter.archives import formats
from splitter.archives.signatures import Kind, recognise
from splitter.manifest.images import missing_image, unusable_image, unwrapped
from splitter.manifest.text import (
    LINE,
    SAVE_AS,
    SUBJECT_COLUMN,
    UTF16_BOMS,
    Fault,
    ManifestError,
    Table,
    UnreadableError,
    bare,
    is_invisible,
    row_words,
    visible,
)
from splitter.messages import ARCHIVE_SUFFIXES
from splitter.sentences import Cases, Problem, Sentence, Words
from splitter.wording import count

Check = Callable[[UnreadableError], Problem | None]
"""Returns a sentence if it recognises the cause, else None."""

LINES_ABOVE_HEADER = 20
"""Lines searched for a header below a title."""

SEPARATORS = {
    ";": Words("semicolons"),
    "\t": Words("tabs"),
    "|": Words("the character '|'"),
}

JOINTS = "_-."
"""Characters that some programs put between two words of a name, like blanks."""

TOTAL = re.compile(r"(?i)\b(?:sub)?(?:totale?s?|sum|summe|count|somme|suma|gesamt|anzahl)\b")

FILE_NAME = re.compile(r"\.[A-Za-z]\w{1,4}\Z")

MOST_OF_A_TOTAL = 3
"""Most filled cells of a line with a total: a word, a number, a unit."""


# A file of another kind

COMPRESSED = Sentence(
    "manifest.compressed",
    "The manifest is a compressed file with the name of a table. Unpack it, and zip the export "
    "again with the table inside.",
)
OTHER_FILE = Sentence(
    "manifest.other-file",
    "The manifest is {kind} with another name, not a text with commas. Open it in Excel or "
    f"LibreOffice, {SAVE_AS}.",
)
WEB_PAGE_INSTEAD = Sentence(
    "manifest.web-page",
    "The manifest is a web page or XML document, not a text with commas. Export it again.",
)


def other_file(failure: UnreadableError) -> Problem | None:
    found = recognise(failure.table.data)
    if found is None:
        return None
    is_zip = found.kind is Kind.ZIP
    kind = Words("a workbook (.xlsx, .ods or .numbers)") if is_zip else found.name
    others = {Kind.COMPRESSED: COMPRESSED, Kind.WEB_PAGE: WEB_PAGE_INSTEAD}
    return others.get(found.kind, OTHER_FILE)(kind=kind)


# The encoding

UNREADABLE_UTF_16 = Sentence(
    "manifest.unreadable-utf-16",
    "The manifest is saved as UTF-16, not as UTF-8, and cannot be read with certainty. Open it in "
    f"the program that saved it, {SAVE_AS}.",
)
CODE_PAGE = Sentence(
    "manifest.not-utf-8",
    "The manifest is not UTF-8. Excel has probably saved it as {menu}, which is {encoding}: {row} "
    f"then has {{text}}. Open the original again, {SAVE_AS}.",
)


def utf_16(failure: UnreadableError) -> Problem | None:
    text = failure.table.text
    is_utf_16 = text.startswith(UTF16_BOMS) or text.count(0) * 3 > len(text)
    return UNREADABLE_UTF_16() if is_utf_16 else None


def code_page(failure: UnreadableError) -> Problem | None:
    error = failure.cause
    if not isinstance(error, UnicodeDecodeError):
        return None
    # Accented letters are C0 to FF in Windows-1252, and mostly 80 to 9F in MacRoman.
    high = [byte for byte in failure.table.text if byte >= 0x80]
    is_mac = sum(byte < 0xA0 and not 0x91 <= byte <= 0x97 for byte in high) * 2 > len(high)
    codec = "mac_roman" if is_mac else "cp1252"
    start = max(0, error.start - 10)
    return CODE_PAGE(
        menu="CSV (Macintosh)" if is_mac else "CSV (comma delimited)",
        encoding=Words("MacRoman" if is_mac else "Windows-1252"),
        row=_where(failure),
        text=error.object[start : error.start + 10].decode(codec, "replace").strip(),
    )


# Quotation marks

TWO_READINGS = Sentence(
    "manifest.quotation-mark-after-backslash",
    "The manifest has a quotation mark after a backslash in {row}, in a cell that is not in "
    "quotation marks, so that it can be read in two ways. Export it again.",
)
MARK_OUT_OF_PLACE = Sentence(
    "manifest.quotation-mark-out-of-place",
    "The manifest cannot be read from {row} on (line {line} of the text), where a quotation mark "
    "is probably missing or out of place ({cause:bare}). Correct that row or export it again.",
)


def two_readings(failure: UnreadableError) -> Problem | None:
    return None if failure.cause else TWO_READINGS(row=_where(failure))


def mark_out_of_place(failure: UnreadableError) -> Problem | None:
    line, _ = _line_of(failure)
    return MARK_OUT_OF_PLACE(row=_where(failure), line=line, cause=str(failure.cause))


def _where(failure: UnreadableError) -> Words:
    """The faulty row with its subjectId, if its first line has one."""
    separator, lines = failure.table.separator, (_first_line(failure.table), _line_of(failure)[1])
    header, cells = (next(csv.reader([line], delimiter=separator), []) for line in lines)
    by_name = dict(zip(header, cells, strict=False))
    return row_words(failure.row, by_name.get(SUBJECT_COLUMN, "") if failure.row > 1 else "")


def _line_of(failure: UnreadableError) -> tuple[int, str]:
    """The number and text of the line where the faulty row begins."""
    table = failure.table
    lines = [found.group().decode(errors="replace") for found in LINE.finditer(table.text)]
    reader = csv.reader(lines, delimiter=table.separator)
    for _ in islice(reader, failure.row - 1):
        pass
    return reader.line_num + 1, "".join(lines[reader.line_num : reader.line_num + 1])


# The header

EMPTY = Sentence("manifest.empty", "The manifest is empty; export it again.")
NO_ROWS = Sentence(
    "manifest.no-rows", "The manifest has a header but no rows, so there is nothing to split; "
    "export it again.",
)  # fmt: skip
TWO_COLUMNS = Sentence(
    "manifest.two-image-columns",
    "The manifest has {number} columns named {column} where one is needed to find the images (its "
    "columns are: {names}). Rename or remove the others, and zip the export again.",
)
SEPARATOR_LINE = Sentence(
    "manifest.separator-line",
    "The manifest begins with the line {line}, which only Excel understands, and is probably "
    f"separated by that character. Open it in the program that saved it, {SAVE_AS}.",
)
SEPARATED_BY = Sentence(
    "manifest.other-separator",
    "The manifest is separated by {separator}, not by commas. Open it in the program that saved "
    f"it, {SAVE_AS}.",
)
SEMICOLONS = Sentence(
    "manifest.semicolons",
    "The manifest is separated by semicolons, not by commas. Open it in the program that saved it, "
    f"{SAVE_AS}. Where Excel writes semicolons even then, set the list separator of Windows to a "
    "comma (Region, Additional settings), or choose it in LibreOffice.",
)
WHOLE_LINES = Sentence(
    "manifest.whole-lines-quoted",
    "The manifest has each whole line in quotation marks ({line}), so that it is one cell. Open it "
    f"in the program that saved it, {SAVE_AS}.",
)
WRAPPED_NAME = Sentence(
    "manifest.wrapped-name",
    "The manifest calls its column {name} where {column} is needed: the names are in quotation "
    "marks that are part of the text, or in a formula. Replace them with plain quotation marks, or "
    "remove them, and zip the export again.",
)
SIMILAR_NAME = Sentence(
    "manifest.similar-column-name",
    "The manifest has no column named {column}, but one named {name} (its columns are: {names}). "
    "Write that name as {column} in the first line, and zip the export again.",
)
NO_HEADER = Sentence(
    "manifest.no-header",
    "The manifest has no line with the names of its columns: its first line is already the row of "
    "an image. Export it again.",
)
HEADER_BELOW = Sentence(
    "manifest.header-below-title",
    "The manifest has its header, the names of its columns, in {row}, below a title ({title}). "
    "Delete what is above the header and zip the export again.",
)
NO_COLUMN = Sentence(
    "manifest.no-image-column",
    "The manifest has no column named {column}, which is needed to find the images (its columns "
    "are: {names}). Give the column with the images' file names that name in the first line, and "
    "zip the export again.",
)


def empty(failure: UnreadableError) -> Problem | None:
    return None if failure.table.header else EMPTY()


def two_columns(failure: UnreadableError) -> Problem | None:
    header, name = failure.table.header, failure.table.image_column
    if sum(visible(each) == visible(name) for each in header) < 2:
        return None
    number = sum(_folded(each) == _folded(name) for each in header)
    return TWO_COLUMNS(number=number, column=name, names=header)


def separator_line(failure: UnreadableError) -> Problem | None:
    first = _first_line(failure.table)
    return SEPARATOR_LINE(line=first.strip('"')) if first.lower().startswith("sep=") else None


def other_separator(failure: UnreadableError) -> Problem | None:
    line = _first_line(failure.table)
    wanted = bare(failure.table.image_column).casefold()
    for separator, words in SEPARATORS.items():
        names = {bare(name.strip().strip('"')).casefold() for name in line.split(separator)}
        if separator != failure.table.separator and separator in line and wanted in names:
            return SEMICOLONS() if separator == ";" else SEPARATED_BY(separator=words)
    return None


def whole_lines(failure: UnreadableError) -> Problem | None:
    header = failure.table.header
    is_one = len(header) == 1 and "," in header[0]
    names = map(unwrapped, header[0].split(",")) if is_one else ()
    return WHOLE_LINES(line=header[0]) if failure.table.image_column in names else None


def other_name(failure: UnreadableError) -> Problem | None:
    header, wanted = failure.table.header, failure.table.image_column
    for sentence, form in ((WRAPPED_NAME, unwrapped), (SIMILAR_NAME, _folded)):
        for name in header:
            if form(name) == form(wanted):
                return sentence(column=wanted, name=name, names=header)
    return None


def no_header(failure: UnreadableError) -> Problem | None:
    files = failure.table.files.by_name
    return NO_HEADER() if any(name in files for name in failure.table.header) else None


def header_below(failure: UnreadableError) -> Problem | None:
    wanted = bare(failure.table.image_column)
    records = failure.table.records()
    _, title = next(records)
    try:
        for number, cells in islice(records, LINES_ABOVE_HEADER):
            names = (name for cell in cells for name in re.split(r"[;\t|]", cell))
            if any(bare(name.strip('"')) == wanted for name in names):
                return HEADER_BELOW(row=row_words(number), title=",".join(title))
    except UnreadableError:
        pass
    return None


def no_column(failure: UnreadableError) -> Problem | None:
    return NO_COLUMN(column=failure.table.image_column, names=failure.table.header)


def _first_line(table: Table) -> str:
    lines = (found.group().strip() for found in LINE.finditer(table.text))
    first = next(filter(None, lines), b"")
    return first.replace(b"\0", b"").decode(errors="replace")


def _folded(name: str) -> str:
    kept = (letter for letter in name if letter not in JOINTS and not is_invisible(letter))
    return "".join(kept).casefold()


# Rows of the wrong width

HEADER_AGAIN = Sentence(
    "manifest.header-again",
    "The manifest has its header, the names of its columns, once more in {row}: another manifest "
    "was pasted below the first. Keep one, or delete that row if both belong to this export, and "
    "zip it again.",
)
TOTAL_ROW = Sentence(
    "manifest.total-row",
    "The manifest's last row, {row}, is not the row of an image but looks like a total ({text}). "
    "Delete it and zip the export again.",
)
SHORT_HEADER = Sentence(
    "manifest.header-too-short",
    "The manifest's first line has {names} names of columns, and each row has {cells} cells: the "
    "header lacks the name of one column, probably the first, as R's write.table leaves it out. "
    "Add the name (in R: col.names=NA, or row.names=FALSE) and zip the export again.",
)
WRONG_WIDTH = Sentence(
    "manifest.rows-of-wrong-length",
    "The manifest has {number:row|rows} of the wrong length: {first}. Correct the manifest or "
    "export it again.",
)


def header_again(failure: UnreadableError) -> Problem | None:
    table = failure.table
    name = table.header[table.column]
    rows = (row_words(number) for number, cells in table.misfits if name in cells)
    row = next(rows, None)
    return HEADER_AGAIN(row=row) if row else None


def total_row(failure: UnreadableError) -> Problem | None:
    """The last row, if only that row is faulty, names no image and has a word for a total."""
    table = failure.table
    faulty = table.misfits or [*table.missing, *table.unusable]
    if len(faulty) != 1 or any(number > faulty[0][0] for number in table.numbers[-1:]):
        return None
    [(number, cells)] = faulty
    image = bare(cells[table.column]) if table.column < len(cells) else ""
    filled = [cell for cell in cells if cell]
    is_total = any(TOTAL.search(cell) for cell in filled)
    if FILE_NAME.search(image) or len(filled) > MOST_OF_A_TOTAL or not is_total:
        return None
    return TOTAL_ROW(row=row_words(number), text=", ".join(filled))


def short_header(failure: UnreadableError) -> Problem | None:
    table = failure.table
    widths, one_more = [len(cells) for _, cells in table.misfits], len(table.header) + 1
    if table.numbers or len(widths) < 2 or set(widths) != {one_more}:
        return None
    return SHORT_HEADER(names=len(table.header), cells=one_more)


def wrong_width(failure: UnreadableError) -> Problem | None:
    table, misfits = failure.table, Cases()
    for number, cells in table.misfits:
        is_length = f"has {count(len(cells), 'cell')} instead of {len(table.header)}"
        misfits.add(where=f"{table.where(number, cells)} {is_length}")
    misfits.number = table.misfits.number
    return WRONG_WIDTH(**misfits.values("; ")) if misfits.number else None


def no_rows(failure: UnreadableError) -> Problem | None:
    return NO_ROWS()


CHECKS: Mapping[Fault, Sequence[Check]] = {
    Fault.TEXT: (two_readings, other_separator, code_page, mark_out_of_place),
    Fault.HEADER: (
        *(empty, two_columns, separator_line, other_separator, whole_lines, other_name),
        *(no_header, header_below, no_column),
    ),
    Fault.ROWS: (
        *(header_again, total_row, short_header, wrong_width, missing_image, unusable_image),
        no_rows,
    ),
}
"""The checks of each fault, in order. The last one always returns a sentence."""


def explain(failure: UnreadableError) -> ManifestError:
    """The error for a project manager."""
    for check in (other_file, utf_16, *CHECKS[failure.fault]):
        if problem := check(failure):
            return ManifestError(problem)
    raise AssertionError(failure.fault)


# The name of the manifest

DOCUMENT = Sentence(
    "manifest.document-instead", "The export is {document}; " + formats.SEND_INSTEAD + "."
)
INNER_ARCHIVE = Sentence(
    "manifest.archive-inside",
    "The archive has no manifest.csv, but another archive inside, {name}; send that one.",
)
OTHER_TABLE = Sentence(
    "manifest.other-table",
    "The archive has no manifest.csv, but {name}, {kind}. Open it in Excel or LibreOffice, "
    f"{SAVE_AS}.",
)
TOO_DEEP = Sentence(
    "manifest.too-deep",
    "The archive has no manifest.csv at its root or in one folder around everything, but {name}, "
    "too deep inside. Zip the content of that folder again.",
)
NO_MANIFEST = Sentence(
    "manifest.none",
    "The archive has no manifest.csv, neither at its root nor in one folder around everything; "
    "export it again.",
)

# Tables that another program saved instead of manifest.csv, by name ending.
OTHER_TABLES = {
    (".xlsx", ".xlsm"): Words("an Excel workbook"),
    (".xls",): Words("an old Excel workbook"),
    (".ods",): Words("a LibreOffice workbook"),
    (".numbers",): Words("a Numbers workbook"),
    (".tsv", ".tab"): Words("a table with tabs"),
    (".csv.txt", "manifest.txt"): Words("a manifest with another name"),
}


def explain_names(names: Collection[str]) -> ManifestError:
    """The error for an archive without a manifest, by the names of its files."""
    if kind := formats.document(names):
        return ManifestError(DOCUMENT, document=Words(kind))
    for name in names:
        if name.lower().endswith(ARCHIVE_SUFFIXES):
            return ManifestError(INNER_ARCHIVE, name=name)
    for endings, words in OTHER_TABLES.items():
        found = [name for name in names if name.lower().endswith(endings) and name.count("/") <= 1]
        found = [name for name in found if "manifest" in name.lower()] or found
        if len(found) == 1:
            return ManifestError(OTHER_TABLE, name=found[0], kind=words)
    for name in names:
        if name.lower().endswith("/manifest.csv"):
            return ManifestError(TOO_DEEP, name=name)
    return ManifestError(NO_MANIFEST)
