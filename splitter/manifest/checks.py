"""Finds damage in a readable manifest: wrong content in well-formed rows.

The checks run after all rows have been read. A check may read the rows again, but only if it has
found something. CONTRIBUTING.md says how to add one, here and in ``diagnosis``.
"""

import re
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

from splitter.manifest.text import CELL, ManifestError, Table, row_words, strict_part
from splitter.sentences import Problem, Sentence

SWAPPED = Sentence(
    "manifest.subject-of-another-image",
    "The manifest gives {number:image|images} the subjectId of another image. The first is {image} "
    "in {row}. One column was probably sorted or moved alone, so every transcription would go to "
    "the wrong specimen: export it again.",
)
FILLED = Sentence(
    "manifest.subjects-filled-down",
    "The manifest has {number:row|rows} whose subjectId continues the one above instead of being "
    "the image's name. The first is {row}, with the image {image}. A spreadsheet's fill handle "
    "probably overwrote the column, so every transcription would go to the wrong specimen: export "
    "it again.",
)
OTHER_SUBJECT = Sentence(
    "manifest.subject-unlike-image",
    "The manifest has {number:row|rows} whose subjectId is not the image's name. The first is "
    "{row}, with the image {image}. A program may have changed the ids; check these rows.",
)
SWALLOWED = Sentence(
    "manifest.swallowed-rows",
    "The manifest has a cell with line breaks in {row} that holds the name of {image}, an image "
    "that no row names. A quotation mark is missing or out of place there, and the rows behind it "
    "were read as one cell. Correct it or export it again.",
)
LOOSE_MARK = Sentence(
    "manifest.quotation-mark-in-cell",
    "The manifest has a quotation mark in a cell that is not in quotation marks: {text} in the "
    "column {column}, {row}. A comma may be missing before it. Compare the row with its specimen.",
)
LOST_ENCODING = Sentence(
    "manifest.lost-encoding",
    "Letters were lost or changed by a wrong encoding before the export arrived: {text} in the "
    "column {column}, {row}. A byte order mark, accents or other letters look wrong on Zooniverse. "
    "Export again from the source.",
)

LOST = re.compile(
    rb"\xef\xbf\xbd|\xef\xbb\xbf|\xc3\xaf\xc2\xbb\xc2\xbf"
    rb"|\xc3[\x82\x83](?:\xc2[\x80-\xbf]|\xc5[\x92\x93\xa0\xa1\xb8\xbd\xbe]|\xc6\x92|\xcb[\x86\x9c]"
    rb"|\xe2[\x80\x82\x84][\x80-\xbf])|\xc3\xa2\xe2\x82\xac"
)
"""U+FFFD, a byte order mark inside the text, and UTF-8 that was read as Windows-1252 and encoded as
UTF-8 a second time."""

OBJECT_ID = re.compile(r"[0-9a-f]{24}\Z")
"""A MongoDB ObjectId, which BIOSPEX uses as subjectId:
https://www.mongodb.com/docs/manual/reference/bson-types/#objectid"""

DIGITS = re.compile(r"\A(.*?)(\d{1,15})\Z", re.DOTALL)
"""A text that ends in a number. A spreadsheet's fill handle increments it from row to row."""

CONTEXT = 30
"""Characters shown on either side of a finding."""


def subjects(table: Table, unlisted: Collection[str]) -> Problem | None:
    """Compare each subjectId with the name of the row's image, ``{subjectId}.jpg``.

    One matching row shows that the images are named after the ids, and so do names that are MongoDB
    ObjectIds. The check then warns about the other rows. It refuses the manifest if transcriptions
    would certainly go to the wrong specimen: if ids were swapped between rows, or if ids count up
    from row to row and the images' names do not. A botanist can check a few odd rows, but cannot
    repair a column.

    Raises:
        ManifestError: if subjectIds were swapped or count up.
    """
    rows = len(table.numbers)
    unlike = [row for row in table.odd if not _is_named_after(row[2], row[1])]
    if not unlike or table.subject == table.column:
        return None
    images = {_stem(image) for _, _, image in unlike}
    ids = {subject for _, subject, _ in unlike}
    # Proof of a swap: the row's image and its subjectId both belong to other rows. A second image
    # of a specimen has an unrelated name and proves nothing.
    swapped = [row for row in unlike if row[1] in images and _stem(row[2]) in ids]
    if swapped:
        raise ManifestError(SWAPPED, number=len(swapped), **_first(swapped[0]))
    object_ids = sum(OBJECT_ID.match(_stem(image)) is not None for _, _, image in unlike)
    if len(unlike) == rows and object_ids * 2 <= rows:
        return None  # the images are not named after ids
    filled = [
        row
        for above, row in pairwise(unlike)
        if counts_up(above[1], row[1]) and not counts_up(_stem(above[2]), _stem(row[2]))
    ]
    if len(filled) * 2 > len(unlike):
        raise ManifestError(FILLED, number=len(filled), **_first(filled[0]))
    return OTHER_SUBJECT(number=len(unlike), **_first(unlike[0]))


def _first(row: tuple[int, str, str]) -> dict[str, str]:
    number, subject, image = row
    return {"row": row_words(number, subject), "image": image}


def _is_named_after(image: str, subject: str) -> bool:
    """Whether an image's name is the subjectId and a suffix that cannot be part of an id."""
    name = image.rpartition("/")[2]
    suffix = name[len(subject) :]
    return name.startswith(subject) and suffix != "" and not suffix[0].isalnum()


def counts_up(above: str, below: str) -> bool:
    """Whether a spreadsheet's fill handle writes ``below`` after ``above``."""
    first, second = DIGITS.match(above), DIGITS.match(below)
    if not first or not second:
        return False
    return first[1] == second[1] and int(first[2]) + 1 == int(second[2])


def _stem(image: str) -> str:
    return image.rpartition("/")[2].rpartition(".")[0]


def swallowed_rows(table: Table, unlisted: Collection[str]) -> None:
    """Refuse rows that became part of a cell because of stray quotation marks.

    Raises:
        ManifestError: if a cell with line breaks has the name of an image that no row names.
    """
    if not unlisted or b'"' not in table.text:
        return
    for number, cells in table.records():
        for cell in cells:
            if "\n" not in cell and "\r" not in cell:
                continue
            words = {*re.split(r'[\s,;"]+', cell), *re.split(r'[\r\n,"]+', cell)}
            if images := sorted(word for word in words.intersection(unlisted) if "." in word):
                raise ManifestError(SWALLOWED, row=table.where(number, cells), image=images[0])


def loose_marks(table: Table, unlisted: Collection[str]) -> Problem | None:
    """Warn about a quotation mark in an unquoted cell, which RFC 4180 forbids."""
    if table.is_strict:
        return None
    position, number = strict_part(table.text)
    column = 0
    while cell := CELL.match(table.text, position):
        column, position = column + 1, cell.end()
    return LOOSE_MARK(**_place(table, number + 1, column, '"'))


def lost_encoding(table: Table, unlisted: Collection[str]) -> Problem | None:
    """Warn about letters that an earlier program lost."""
    if table.text.isascii() or not (found := LOST.search(table.text)):
        return None
    lost = found.group().decode()
    for number, cells in table.records():
        for column, cell in enumerate(cells):
            if lost in cell:
                return LOST_ENCODING(**_place(table, number, column, lost))
    return None


def _place(table: Table, number: int, column: int, wanted: str) -> dict[str, object]:
    """The values for a sentence about ``wanted`` in a cell."""
    cells = next(cells for row, cells in table.records() if row == number)
    cell = cells[column] if column < len(cells) else ""
    start = max(cell.find(wanted), 0)
    return {
        "text": cell[max(start - CONTEXT, 0) : start + len(wanted) + CONTEXT],
        "column": table.header[column] if column < len(table.header) else "",
        "row": row_words(1) if cells == table.header else table.where(number, cells),
    }


Check = Callable[[Table, Collection[str]], Problem | None]
"""A check of a table and the files that no row names. Every row has its image."""

CHECKS: Sequence[Check] = (swallowed_rows, subjects, loose_marks, lost_encoding)
