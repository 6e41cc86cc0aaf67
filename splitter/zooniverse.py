"""Checks the batches against Zooniverse's rules, by names, sizes, cells and some image bytes.

A batch is uploaded in one of two ways, and each has its own rules:

- the web page of a subject set, ``app/pages/lab/subject-set.cjsx`` in
  https://github.com/zooniverse/Panoptes-Front-End;
- the command line client, ``panoptes_cli/commands/subject_set.py`` in
  https://github.com/zooniverse/panoptes-cli with ``panoptes_client/subject.py`` in
  https://github.com/zooniverse/panoptes-python-client.

The statements were checked in May 2026 against panoptes-client 1.7.1, panoptescli 1.2.1 and the
web page; others name their source.
"""

import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

from splitter.archives import Contents, ZipIndex
from splitter.archives.signatures import WEB_PAGE, markup, recognise, text_of
from splitter.errors import ExportError
from splitter.manifest import MANIFEST, Partition
from splitter.manifest.text import bare, row_words
from splitter.sentences import MAX_CASES, Actor, Cases, Problem, Sentence, Words, shown

WEB_PAGE_SIZE = 1000 * 1024
"""Bytes from which on the web page refuses a file: its ``MAX_FILE_SIZE``, "up to 1000KB"."""

CLIENT_SIZE = 1024 * 1024
"""Bytes above which the client refuses the whole batch: its ``MAX_UPLOAD_FILE_SIZE``."""

EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".gif", ".svg"),
    *(".mp3", ".m4a", ".mpeg", ".mp4", ".txt", ".json"),
)
"""The web page's ``VALID_SUBJECT_EXTENSIONS``."""

FORBIDDEN = "/\\:,"
"""The web page's ``INVALID_FILENAME_CHARS``. Of a name with one, it uses the text behind it."""

LIKE_AN_IMAGE = re.compile(
    rf"(?<=[^{re.escape(FORBIDDEN)}])(?:{'|'.join(map(re.escape, EXTENSIONS))})", re.IGNORECASE
)
"""A part of a cell, in any column, that the web page takes for an image's name, in
``_findFilesInMetadata``. In ``http://example.org/1.jpg?size=2`` it is ``1.jpg``. The page then
waits for a file that does not come."""

NOT_ON_WINDOWS = re.compile(r"(?i)[<>\"|?*]|[. ]$|^(?:con|prn|aux|nul|com[1-9]|lpt[1-9])(?:\.|$)")
"""Names that Windows cannot hold, so its users cannot unpack the batch:
https://learn.microsoft.com/windows/win32/fileio/naming-a-file"""

SMALLEST_JPEG = 107
"""Bytes of the smallest JPEG: https://github.com/mathiasbynens/small"""

END_OF_JPEG = b"\xff\xd9"
TAIL = 64 * 1024
"""Bytes at the end of a JPEG that are searched for its end marker; some cameras write more data
behind the marker."""

LARGEST_SAMPLE = 8 * 1024 * 1024
"""Bytes up to which an image in S3 is sampled; it is read whole."""

LONGEST_CELL = 131_072
"""Characters that Python's ``csv.field_size_limit`` allows a cell; the client does not raise it."""

FOLDERS = (".", "..", "/", "./", "../")
"""Cells of a batch's first row that the client takes for an image's name, since the paths exist."""

ADVISED_ROWS = 1000
"""The web page: "We strongly recommend uploading subjects in batches of 500 - 1,000 at a time"."""

SMALL_SAMPLES = 50
"""Images in S3, smaller than any JPEG, that are sampled too."""

PARALLEL_SAMPLES = 16

Look = tuple[str, bytes, bytes]
"""An image and its first and last bytes."""

START = 512
"""Bytes at the start of an image that show its format."""

# The client asks libmagic and takes image/jpeg, png, gif and svg+xml (ALLOWED_MIME_TYPES; sound,
# film and text are not for exports of images). File signatures as in libmagic's "images" and
# "sgml".
TAKEN = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
# Atomic: a comment is never tried as the begin of a longer one.
SVG = re.compile(
    rb"(?s)\s*+(?><\?xml.*?>\s*+)?+(?><!--.*?-->\s*+)*+(?:<!DOCTYPE svg.*?>\s*+)?<svg\b"
)

TOO_LARGE_FOR_PAGE = Sentence(
    "zooniverse.too-large-for-page",
    "{number:image is|images are} too large for Zooniverse's web page, which takes files below "
    "1,000 KiB: {first}.",
)
TOO_LARGE_FOR_CLIENT = Sentence(
    "zooniverse.too-large-for-client",
    "{number:image is|images are} too large for Zooniverse's client, which takes up to "
    f"{CLIENT_SIZE:,} bytes and otherwise uploads nothing of the batch: {{first}}.",
)
EMPTY_IMAGE = Sentence(
    "zooniverse.empty-image",
    "{number:image is|images are} empty (0 bytes). The web page ignores them, and the client "
    "uploads nothing of the batch: {first}.",
)
NOT_ON_WINDOWS_NAME = Sentence(
    "zooniverse.name-not-on-windows",
    "{number:image has|images have} a name that is not possible on Windows, where nobody can "
    "unpack the batch whole: {first}.",
)
UNKNOWN_EXTENSION = Sentence(
    "zooniverse.unknown-extension",
    "{number:image has|images have} an extension that the web page does not know (it knows "
    f"{', '.join(EXTENSIONS)}): {{first}}.",
)
SVG_IMAGE = Sentence(
    "zooniverse.svg-image",
    "{number:image is|images are} in the format SVG. Zooniverse's present site cannot show it, so "
    "a project with SVG is sent to the legacy site: {first}.",
)
"""https://github.com/zooniverse/front-end-monorepo/issues/5311, open, read in November 2026."""

FORBIDDEN_NAME = Sentence(
    "zooniverse.forbidden-name",
    "{number:image has|images have} a name with characters that the web page does not allow (/ \\ "
    ": , or blanks around the name): {first}.",
)
OTHER_IMAGE_COLUMN = Sentence(
    "zooniverse.images-of-other-column",
    "The column {column} has {number:cell|cells} with the name of an image that is in no batch, "
    "because only the column {counted} counts: {first}.",
)
LIKE_IMAGE = Sentence(
    "zooniverse.cell-like-image",
    "The column {column} has {number:cell|cells} with text like an image's name. The web page "
    "waits for such files too and leaves the rows incomplete: {first}.",
)
ROW_TWICE = Sentence(
    "zooniverse.row-twice",
    "{number:row is|rows are} in the manifest more than once, so volunteers see the image twice: "
    "{first}.",
)
IMAGE_TWICE = Sentence(
    "zooniverse.image-twice",
    "{number:row names|rows name} an image that an earlier row has, so volunteers see it twice: "
    "{first}.",
)
LONG_CELL = Sentence(
    "zooniverse.long-cell",
    f"{{number:row has a cell|rows have cells}} longer than {LONGEST_CELL:,} characters, which the "
    "client refuses: {first}.",
)
NUL_IN_ROW = Sentence(
    "zooniverse.nul-in-row",
    "{number:row has|rows have} a NUL character, which Zooniverse's database cannot hold: {first}.",
)
CELL_IS_FILE = Sentence(
    "zooniverse.cell-is-file",
    "{number:cell in the first row of a batch has|cells in the first rows of batches have} the "
    "name of a file or folder that exists, so the client reads no image of the batch: {first}.",
)
SAME_NAME = Sentence(
    "zooniverse.columns-with-one-name",
    "Columns have the same name: {names}. The client keeps the last of them, the web page keeps "
    "each under a name of its own.",
)
PERCENT = Sentence(
    "zooniverse.percent-column",
    "Columns begin with % ({names}). Zooniverse removes it and makes the subject set an indexed "
    "one. Rename them if that is not intended.",
)
NO_IMAGE = Sentence(
    "zooniverse.no-image",
    "{number:image is|images are} no JPEG, PNG, GIF or SVG by the first bytes "
    "({looked_at:was|were} looked at), and the client stops there midway: {first}.",
)
TEXT_INSTEAD = Sentence(
    "zooniverse.text-instead",
    "{number:image is|images are} text instead of a picture ({looked_at:was|were} looked at), and "
    "the client uploads such a file as text: {first}.",
)
CUT_OFF = Sentence(
    "zooniverse.jpeg-cut-off",
    "{number:image has|images have} no end marker of a JPEG ({looked_at:was|were} looked at), "
    "probably cut off during a copy. Volunteers see a part of such an image: {first}.",
)
LARGE_BATCH = Sentence(
    "zooniverse.large-batch",
    f"The largest batch has {{rows}} rows. The web page advises 500 to {ADVISED_ROWS:,} at a time, "
    "and the client for more.",
    Actor.NOBODY,
    "Nothing has to be done here. Upload the batch with the client, or set BATCH_SIZE=1000.",
)


def inspect(parts: Partition, files: Contents | ZipIndex) -> Partition:
    """The batches with warnings about Zooniverse.

    Reads the manifests of the batches, and the first and last bytes of each image that is unpacked
    on this machine. Of a ZIP in S3 it samples a few images.
    """
    names = parts.images
    if isinstance(files, Contents):
        sizes = {image: files.members[name].size for image, name in names.items()}
        looks = _starts(files, names)
    else:
        sizes = {image: files.members[name].info.file_size for image, name in names.items()}
        looks = _sampled(files, names, sizes)
    others = {name.removeprefix(parts.folder) for name in parts.unlisted}
    found = (*of_files(sizes), *of_cells(parts, others), *_of_starts(looks))
    return replace(parts, zooniverse=found)


def section(parts: Partition) -> list[str]:
    """The lines of a summary or a plan under "Zooniverse"."""
    lines = [*map(str, parts.zooniverse)]
    most = max(batch.rows for batch in parts.batches)
    if most > ADVISED_ROWS:
        lines.append(str(LARGE_BATCH(rows=most)))
    return lines or ["No Zooniverse problems found."]


def of_files(sizes: Mapping[str, int]) -> Iterator[Problem]:
    """Warnings about the names and sizes in bytes of the images that a row names."""
    found: defaultdict[Sentence, Cases] = defaultdict(Cases)
    for name, size in sizes.items():
        if size >= WEB_PAGE_SIZE:
            found[TOO_LARGE_FOR_PAGE].add(name, f" ({size:,} bytes)")
        if size > CLIENT_SIZE:
            found[TOO_LARGE_FOR_CLIENT].add(name, f" ({size:,} bytes)")
        if not size:
            found[EMPTY_IMAGE].add(name)
        if NOT_ON_WINDOWS.search(name.rpartition("/")[2]):
            found[NOT_ON_WINDOWS_NAME].add(name)
        if name.lower().endswith(".svg"):
            found[SVG_IMAGE].add(name)
        if any(character in FORBIDDEN for character in name) or bare(name) != name:
            found[FORBIDDEN_NAME].add(name)
        elif not name.lower().endswith(EXTENSIONS):
            found[UNKNOWN_EXTENSION].add(name)
    return (sentence(**cases.values()) for sentence, cases in found.items())


def of_cells(parts: Partition, others: Collection[str] = ()) -> Iterator[Problem]:
    """Warnings about the cells that Zooniverse refuses or takes in another way.

    Args:
        others: files of the archive that are in no batch, relative to the manifest.
    """
    found: defaultdict[tuple[Sentence, str], Cases] = defaultdict(Cases)
    unlisted = frozenset(others)
    seen_rows: set[int] = set()
    seen_images: set[str] = set()
    header: list[str] = []
    for batch in parts.batches:
        header, *rows = csv.reader(io.StringIO(batch.manifest.decode(), newline=""))
        names = "\n".join(row[parts.column] for row in rows).encode()
        may_be_like = _extensions(batch.manifest) > _extensions(names)
        has_nul = b"\0" in batch.manifest
        if batch.part == 1 and "\0" in "".join(header):
            found[NUL_IN_ROW, ""].add(where="the header")
        files = {*FOLDERS, MANIFEST, *batch.images} - {rows[0][parts.column]}
        for cell in sorted(files.intersection(rows[0])):
            place = f"{shown(cell)} in {_where(parts, batch.first_row, rows[0])}"
            found[CELL_IS_FILE, ""].add(where=place)
        for number, row in enumerate(rows, batch.first_row):
            name, row_hash = row[parts.column], hash(tuple(row))
            if name in seen_images:
                sentence = ROW_TWICE if row_hash in seen_rows else IMAGE_TWICE
                found[sentence, ""].add(name, f" in {_where(parts, number, row)}")
            seen_images.add(name)
            seen_rows.add(row_hash)
            if (longest := max(map(len, row))) > LONGEST_CELL:
                place = f"{_where(parts, number, row)} with {longest:,} characters"
                found[LONG_CELL, ""].add(where=place)
            if has_nul and "\0" in "".join(row):
                found[NUL_IN_ROW, ""].add(where=_where(parts, number, row))
            if may_be_like or not unlisted.isdisjoint(row):
                for position, cell in enumerate(row):
                    sentence = OTHER_IMAGE_COLUMN if cell in unlisted else LIKE_IMAGE
                    if cell in unlisted or (
                        position != parts.column and LIKE_AN_IMAGE.search(cell)
                    ):
                        place = f" in {_where(parts, number, row)}"
                        found[sentence, header[position]].add(cell, place)
    counted = header[parts.column]
    for (sentence, title), cases in found.items():
        yield sentence(column=title, counted=counted, **cases.values())
    twice = [name for name, count in Counter(map(str.strip, header)).items() if count > 1]
    if twice:
        yield SAME_NAME(names=twice[:MAX_CASES])
    percent = [name for name in header if name.strip().startswith("%")]
    if percent:
        yield PERCENT(names=percent[:MAX_CASES])


def _where(parts: Partition, number: int, cells: Sequence[str]) -> Words:
    """The words for a row as Excel counts it; ``number`` counts the batches' rows from 1."""
    subject = cells[parts.subject] if parts.subject is not None else ""
    return row_words(parts.numbers[number - 1], subject)


def _extensions(text: bytes) -> int:
    """The number of extensions in a text; much faster than a search of each cell."""
    lower = text.lower()
    return sum(lower.count(extension.encode()) for extension in EXTENSIONS)


def _starts(contents: Contents, names: Mapping[str, str]) -> Iterator[Look]:
    with contents.store.open("rb", buffering=0) as store:
        for image, name in names.items():
            begin, size = contents.members[name].offset, contents.members[name].size
            start, tail = os.pread(store.fileno(), min(START, size), begin), b""
            for length in (START, TAIL):  # nearly all JPEGs end in the shorter one
                if _is_cut_off(start, tail):
                    length = min(length, size)
                    tail = os.pread(store.fileno(), length, begin + size - length)
            if size:
                yield image, start, tail


def _sampled(index: ZipIndex, names: Mapping[str, str], sizes: Mapping[str, int]) -> Iterator[Look]:
    images = list(names)
    small = (image for image, size in sizes.items() if 0 < size < SMALLEST_JPEG)
    chosen = [images[position] for position in sorted({0, len(images) // 2, len(images) - 1})]
    sampled = dict.fromkeys([*chosen, *islice(small, SMALL_SAMPLES)])

    def look(image: str) -> Look | None:
        try:
            data = b"".join(index.chunks(names[image]))
        except ExportError:  # damaged; VERIFY is for that
            return None
        return image, data[:START], data[-TAIL:]

    with ThreadPoolExecutor(PARALLEL_SAMPLES) as pool:
        looks = pool.map(look, (name for name in sampled if 0 < sizes[name] <= LARGEST_SAMPLE))
        yield from filter(None, looks)


def _of_starts(looks: Iterable[Look]) -> Iterator[Problem]:
    found: defaultdict[Sentence, Cases] = defaultdict(Cases)
    looked_at = 0
    for image, start, tail in looks:
        looked_at += 1
        if _is_cut_off(start, tail):
            found[CUT_OFF].add(image)
        elif is_taken(start):
            continue
        elif _is_text(start):
            found[TEXT_INSTEAD].add(image)
        else:
            kind = recognise(start)
            found[NO_IMAGE].add(image, f" ({kind.name if kind else 'of an unknown kind'})")
    return (sentence(looked_at=looked_at, **cases.values()) for sentence, cases in found.items())


def _is_cut_off(start: bytes, tail: bytes) -> bool:
    return start.startswith(TAKEN[0]) and END_OF_JPEG not in tail


def _is_text(start: bytes) -> bool:
    """Whether the client takes a file's first bytes for text/plain or JSON; not HTML."""
    text = text_of(start)
    # A character may be cut at the end.
    is_utf_8 = text is not None and len(text.encode()) >= len(start) - 3
    return is_utf_8 and markup(text or "") is not WEB_PAGE


def is_taken(start: bytes) -> bool:
    """Whether an image's first bytes are of a kind that Zooniverse's client takes."""
    return start.startswith(TAKEN) or SVG.match(start) is not None
