"""Checks of a manifest that can be read: damage that leaves every row well-formed.

Each check is a function or a small class with the sentence that it gives. To add one, declare its
sentence, add it to ``of_text`` or to ``RowChecks``, and put an input into
tests/fixtures/cases/tables.
"""

import re
from collections.abc import Collection, Iterator, Sequence

from splitter.manifest.text import ManifestError
from splitter.sentences import Said, Sentence

SUBJECT_COLUMN = "subjectId"

MAX_KEPT = 10_000
"""Rows of one kind that are compared with each other."""

SWAPPED = Sentence(
    "manifest.subject-of-another-image",
    "The manifest gives {count} images the subjectId of another image, the first in row {row}, "
    "where {image} has the subjectId {subject}; one column was probably sorted or moved alone. "
    "Every transcription would go to the wrong specimen: export it again.",
)
OTHER_SUBJECT = Sentence(
    "manifest.subject-unlike-image",
    "{count} rows have a subjectId that is not their image's name, the first is row {row}: "
    "{image} has the subjectId {subject}; a program may have changed the ids. Check these rows.",
)
SWALLOWED = Sentence(
    "manifest.swallowed-rows",
    "The manifest has a cell with line breaks in row {row} (line {line}) that holds the name of "
    "{image}, an image that no row names: a quotation mark is missing or out of place there, and "
    "the rows behind it were read as one cell; correct it or export it again.",
)
BARE_QUOTE = Sentence(
    "manifest.quotation-mark-in-cell",
    "Line {line} has a quotation mark inside a cell that does not begin with one ({text}); a comma "
    "may be missing before it. Compare the row with its specimen.",
)
LOST_ENCODING = Sentence(
    "manifest.lost-encoding",
    "Letters were lost or changed by a wrong encoding before the export arrived: line {line} has "
    "{text}; a byte order mark, accents or other letters look wrong on Zooniverse. Export again "
    "from the source.",
)

# A quotation mark with other characters on both sides. RFC 4180 has none: a mark inside a quoted
# cell is doubled, and one that opens or closes a cell has a comma or a line end beside it.
_BARE_QUOTE = re.compile(rb'[^,\r\n"]"[^,\r\n"]')

# UTF-8 that was read as Windows-1252 and written as UTF-8 once more, U+FFFD, and a byte order mark
# that is not at the text's beginning.
_LOST = re.compile(
    rb"\xef\xbf\xbd|\xef\xbb\xbf|\xc3\xaf\xc2\xbb\xc2\xbf"
    rb"|\xc3[\x82\x83](?:\xc2[\x80-\xbf]|\xc5[\x92\x93\xa0\xa1\xb8\xbd\xbe]|\xc6\x92|\xcb[\x86\x9c]"
    rb"|\xe2[\x80\x82\x84][\x80-\xbf])|\xc3\xa2\xe2\x82\xac"
)

_SEEN = 30
"""Bytes on either side of a finding that its sentence shows."""


def of_text(text: bytes) -> Iterator[Said]:
    """Warnings about the text of a manifest, UTF-8 without a byte order mark in front."""
    for pattern, sentence in ((_BARE_QUOTE, BARE_QUOTE), (_LOST, LOST_ENCODING)):
        if found := pattern.search(text):
            yield sentence(line=_line_of(text, found.start()), text=_around(text, found))


def _line_of(text: bytes, position: int) -> int:
    return text.count(b"\n", 0, position) + 1


def _around(text: bytes, found: re.Match[bytes]) -> str:
    start = max(text.rfind(b"\n", 0, found.start()) + 1, found.start() - _SEEN)
    end = text.find(b"\n", found.end())
    piece = text[start : min(end if end >= 0 else len(text), found.end() + _SEEN)]
    return piece.decode(errors="ignore").strip()


class RowChecks:
    """Checks of rows that have their image; ``see`` each row once, then ``finish``."""

    def __init__(self, header: Sequence[str], column: int, text: bytes) -> None:
        self._column = column
        self._has_quotes = b'"' in text  # without one, no cell has a line break
        self._subject = header.index(SUBJECT_COLUMN) if SUBJECT_COLUMN in header else None
        self._row = self._fits = self._others = 0
        self._unlike: list[tuple[int, str, str]] = []
        self._broken: list[tuple[int, int, str]] = []

    def see(self, line: int, cells: Sequence[str]) -> None:
        self._row += 1
        if self._subject is not None and self._subject != self._column:
            self._compare(cells[self._subject], cells[self._column])
        if self._has_quotes and len(self._broken) < MAX_KEPT:
            joined = ",".join(cells)
            if "\n" in joined or "\r" in joined:
                self._broken.append((self._row, line, joined))

    def _compare(self, subject: str, image: str) -> None:
        if (
            image.startswith(subject)
            and image[len(subject) :].count(".") == 1
            and (image[len(subject) : len(subject) + 1] == ".")
        ):
            self._fits += 1
            return
        self._others += 1
        if len(self._unlike) < MAX_KEPT:
            self._unlike.append((self._row, subject, image))

    def finish(self, unlisted: Collection[str]) -> Iterator[Said]:
        """Warnings.

        Args:
            unlisted: files that no row names, relative to the manifest.

        Raises:
            ManifestError: if rows were swallowed, or images have the subjectId of another one.
        """
        self._check_swallowed(unlisted)
        self._check_swapped()
        if self._unlike and self._fits > self._others:
            row, subject, image = self._unlike[0]
            yield OTHER_SUBJECT(count=self._others, row=row + 1, image=image, subject=subject)

    def _check_swallowed(self, unlisted: Collection[str]) -> None:
        for row, line, cells in self._broken:
            words = {*re.split(r'[\s,;"]+', cells), *re.split(r'[\r\n,"]+', cells)}
            for word in sorted(words):
                if "." in word and word in unlisted:
                    raise ManifestError(SWALLOWED, row=row + 1, line=line, image=word)

    def _check_swapped(self) -> None:
        """A row whose image and subjectId both belong to other rows is proof; a second image of a
        specimen, with a name of its own, is none."""
        images = {_stem(image) for _, _, image in self._unlike}
        subjects = {subject for _, subject, _ in self._unlike}
        swapped = [
            (row, subject, image)
            for row, subject, image in self._unlike
            if subject in images and _stem(image) in subjects
        ]
        if swapped:
            row, subject, image = swapped[0]
            raise ManifestError(
                SWAPPED, count=len(swapped), row=row + 1, image=image, subject=subject
            )


def _stem(image: str) -> str:
    return image.rpartition("/")[2].rpartition(".")[0]
