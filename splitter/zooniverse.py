"""What Zooniverse will not take of the batches, by the names, sizes and cells that are known here.

A batch is uploaded in one of two ways, and each refuses in its own:

- the web page of a subject set, ``app/pages/lab/subject-set.cjsx`` in
  https://github.com/zooniverse/Panoptes-Front-End;
- the Python client, ``panoptes_cli/commands/subject_set.py`` in
  https://github.com/zooniverse/panoptes-cli with ``panoptes_client/subject.py`` in
  https://github.com/zooniverse/panoptes-python-client.

The statements were checked against the client 1.7.1 and the web page of May 2026.
"""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from splitter.archives.extract import Contents
from splitter.archives.zip_index import ZipIndex
from splitter.errors import ExportError
from splitter.manifest.partition import MANIFEST, Partition
from splitter.manifest.text import bare
from splitter.sentences import escaped, shown

SHOWN = 3
"""Cases of each kind that are named."""

WEB_PAGE_SIZE = 1000 * 1024
"""Bytes from which on the web page takes no file: its ``MAX_FILE_SIZE``, "up to 1000KB"."""

CLIENT_SIZE = 1024 * 1024
"""Bytes above which the client refuses the whole batch: its ``MAX_UPLOAD_FILE_SIZE``."""

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".gif",
    ".svg",
    ".mp3",
    ".m4a",
    ".mpeg",
    ".mp4",
    ".txt",
    ".json",
)
"""The web page's ``VALID_SUBJECT_EXTENSIONS``."""

FORBIDDEN = "/\\:,"
"""The web page's ``INVALID_FILENAME_CHARS``; a name with one is looked for from behind it."""

LIKE_AN_IMAGE = re.compile(
    rf"(?<=[^{re.escape(FORBIDDEN)}])(?:{'|'.join(map(re.escape, EXTENSIONS))})", re.IGNORECASE
)
"""Where the web page sees an image in a cell of any column, as ``_findFilesInMetadata`` does: in
``http://example.org/1.jpg?size=2`` it is ``1.jpg``. It waits for that file in vain."""

NOT_ON_WINDOWS = re.compile(r"(?i)[<>\"|?*]|[. ]$|^(?:con|prn|aux|nul|com[1-9]|lpt[1-9])(?:\.|$)")
"""Names that Windows cannot hold, so that its users cannot unpack the batch:
https://learn.microsoft.com/windows/win32/fileio/naming-a-file"""

SMALLEST_JPEG = 107
"""Bytes of the smallest file that is a JPEG: https://github.com/mathiasbynens/small"""

END_OF_JPEG = b"\xff\xd9"
TAIL = 64 * 1024
"""Bytes of a JPEG's end where its end marker is looked for; some cameras write more behind it."""

LARGEST_SAMPLE = 8 * 1024 * 1024
"""Bytes of a sampled image that are read from elsewhere to look at its end."""

LONGEST_CELL = 131_072
"""Characters that Python's ``csv.field_size_limit`` allows a cell; the client does not raise it."""

FOLDERS = (".", "..", "/", "./", "../")
"""In a batch's first row the client takes every cell that exists as a path for an image's name."""

ADVISED_ROWS = 1000
"""The web page: "We strongly recommend uploading subjects in batches of 500 - 1,000 at a time"."""

SAMPLES = 3
"""Images whose first bytes are fetched where they are not on this machine."""

START = 512
"""Bytes of an image that tell what it is."""

# The client asks libmagic and takes image/jpeg, png, gif and svg+xml (ALLOWED_MIME_TYPES; sound,
# film and text are not for exports of images). File signatures as in libmagic's "images" and
# "sgml".
TAKEN = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
# Atomic: what was taken for a comment is never tried as the begin of a longer one.
SVG = re.compile(
    rb"(?s)\s*+(?><\?xml.*?>\s*+)?+(?><!--.*?-->\s*+)*+(?:<!DOCTYPE svg.*?>\s*+)?<svg\b"
)
OTHERS = {
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"II+\0": "a BigTIFF",
    b"BM": "a BMP",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP",
    b"\0\0\0\x0cjP": "a JPEG 2000",
    b"\xff\x0a": "a JPEG XL",
}
WEB_PAGE = re.compile(rb"\s*<(?:!doctype html|html|head|body)", re.IGNORECASE)


@dataclass
class Cases:
    """All cases of one kind: how many, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, case: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(escaped(case))

    def sentence(self, one: str, many: str, what: str) -> Iterator[str]:
        if self.count:
            more = ", …" if self.count > len(self.first) else ""
            which = one if self.count == 1 else many
            yield f"{self.count:,} {which} {what}: {', '.join(self.first)}{more}."


def inspect(parts: Partition, files: Contents | ZipIndex) -> Partition:
    """The same batches, with what Zooniverse will say of them.

    Costs a reading of the batches' manifests. Of what is unpacked on this machine each image's
    first bytes are looked at; of a ZIP elsewhere, those of ``SAMPLES``.
    """
    names = parts.images
    if isinstance(files, Contents):
        sizes = {image: files.members[name].size for image, name in names.items()}
        looks = _starts(files, names)
    else:
        sizes = {image: files.members[name].info.file_size for image, name in names.items()}
        looks = _sampled(files, names)
    others = {name.removeprefix(parts.folder) for name in parts.unlisted}
    warnings = [*findings(parts, sizes, others), *_not_images(looks)]
    return replace(parts, zooniverse=warnings, zooniverse_notes=_notes(parts))


def section(parts: Partition) -> list[str]:
    """What a summary or a plan says under "Zooniverse", a sentence a line."""
    said = [*parts.zooniverse, *parts.zooniverse_notes]
    return said or ["No Zooniverse problems found."]


def findings(parts: Partition, sizes: Mapping[str, int], others: Iterable[str] = ()) -> list[str]:
    """Sentences on what Zooniverse will not take or will take otherwise than it was meant.

    Args:
        sizes: bytes of each image that a row names.
        others: files of the archive that are in no batch, relative to the manifest.
    """
    return [*_of_files(sizes), *_of_cells(parts, sizes, frozenset(others))]


def _of_files(sizes: Mapping[str, int]) -> Iterator[str]:
    for_page, for_client, empty = Cases(), Cases(), Cases()
    extension, forbidden, windows, tiny = Cases(), Cases(), Cases(), Cases()
    for name, size in sizes.items():
        if size > CLIENT_SIZE:
            for_client.add(f"{name} ({size:,} bytes)")
        if size >= WEB_PAGE_SIZE:
            for_page.add(f"{name} ({size:,} bytes)")
        if not size:
            empty.add(name)
        elif size < SMALLEST_JPEG and name.lower().endswith((".jpg", ".jpeg")):
            tiny.add(f"{name} ({size:,} bytes)")
        if NOT_ON_WINDOWS.search(name.rpartition("/")[2]):
            windows.add(name)
        if any(character in FORBIDDEN for character in name) or bare(name) != name:
            forbidden.add(name)
        elif not name.lower().endswith(EXTENSIONS):
            extension.add(name)
    yield from for_page.sentence(
        "image is", "images are", "too large for Zooniverse's web page, which takes up to 1,000 KiB"
    )
    yield from for_client.sentence(
        "image is",
        "images are",
        f"too large for Zooniverse's client, above {CLIENT_SIZE:,} bytes, and it then uploads "
        "nothing of the batch",
    )
    yield from empty.sentence(
        "image is",
        "images are",
        "empty (0 bytes); the web page passes over them, and the client uploads nothing of the "
        "batch",
    )
    yield from tiny.sentence(
        "image is", "images are", "smaller than any JPEG, so probably cut off or damaged"
    )
    yield from windows.sentence(
        "image name is",
        "image names are",
        "not possible on Windows, where nobody can unpack the batch whole",
    )
    yield from extension.sentence(
        "image has",
        "images have",
        "an extension that the web page does not know (it knows .jpg, .jpeg, .png, .gif, .svg)",
    )
    yield from forbidden.sentence(
        "image name has",
        "image names have",
        "characters that the web page does not allow (/ \\ : , or blanks around the name)",
    )


def _of_cells(parts: Partition, sizes: Mapping[str, int], others: frozenset[str]) -> Iterator[str]:
    column = parts.column
    like: dict[int, Cases] = {}
    lost: dict[int, Cases] = {}
    long, nul, rows_again, images_again = Cases(), Cases(), Cases(), Cases()
    folders = Cases()
    seen_rows: set[int] = set()
    seen_images: set[str] = set()
    header: list[str] = []
    for batch in parts.batches:
        header, *rows = csv.reader(io.StringIO(batch.manifest.decode(), newline=""))
        names = "\n".join(row[column] for row in rows).encode()
        may_be_like = _extensions(batch.manifest) > _extensions(names)
        has_nul = b"\0" in batch.manifest
        for number, row in enumerate(rows, batch.first_row):
            name = row[column]
            row_hash = hash(tuple(row))
            if name in seen_images:
                again = rows_again if row_hash in seen_rows else images_again
                again.add(f"{name} (row {number})")
            seen_images.add(name)
            seen_rows.add(row_hash)
            if sum(map(len, row)) > LONGEST_CELL:
                for cell in row:
                    if len(cell) > LONGEST_CELL:
                        long.add(f"row {number} with {len(cell):,} characters")
            if number == batch.first_row:
                inside = {MANIFEST, *batch.images} - {name}
                for cell in set(row).intersection(FOLDERS) | set(row).intersection(inside):
                    folders.add(f"'{cell}' (row {number})")
            if has_nul and "\0" in "".join(row):
                nul.add(f"row {number}")
            if may_be_like or not others.isdisjoint(row):
                for position, cell in enumerate(row):
                    if position != column and cell in others:
                        lost.setdefault(position, Cases()).add(f"{cell} (row {number})")
                    elif position != column and LIKE_AN_IMAGE.search(cell):
                        like.setdefault(position, Cases()).add(f"{cell} (row {number})")
    for position, cases in sorted(lost.items()):
        yield from cases.sentence(
            "cell",
            "cells",
            f"of the column {shown(header[position])} name images of the archive that are in no "
            f"batch, as only {shown(header[column])} counts",
        )
    for position, cases in sorted(like.items()):
        yield from cases.sentence(
            "cell",
            "cells",
            f"of the column {shown(header[position])} look like image names, and the web page "
            "waits for those files too and leaves the rows incomplete",
        )
    yield from rows_again.sentence(
        "row stands", "rows stand", "in the manifest twice, and volunteers will see it twice"
    )
    yield from images_again.sentence(
        "row names", "rows name", "an image that an earlier row has, which volunteers see twice"
    )
    yield from long.sentence(
        "cell is", "cells are", f"longer than {LONGEST_CELL:,} characters, which the client refuses"
    )
    yield from nul.sentence(
        "row has", "rows have", "a NUL character, which Zooniverse's database cannot hold"
    )
    yield from folders.sentence(
        "cell",
        "cells",
        "of a batch's first row name a file or folder that is there, and the client then reads no "
        "image of the batch",
    )
    twice = [name for name, count in Counter(map(str.strip, header)).items() if count > 1]
    if twice:
        listed = ", ".join(map(shown, twice[:SHOWN]))
        yield (
            f"Columns have the same name: {listed}. The client keeps the last of them, the web "
            "page keeps each under a name of its own."
        )
    percent = [name for name in header if name.strip().startswith("%")]
    if percent:
        listed = ", ".join(map(shown, percent[:SHOWN]))
        yield (
            f"Columns begin with % ({listed}); Zooniverse cuts it and makes the subject set an "
            "indexed one. Rename them if that is not wanted."
        )
    if "\0" in "".join(header):
        yield "The header has a NUL character, which Zooniverse's database cannot hold."


def _extensions(text: bytes) -> int:
    """How often a text has one of them; much faster than a look at each cell."""
    lower = text.lower()
    return sum(lower.count(extension.encode()) for extension in EXTENSIONS)


def _notes(parts: Partition) -> list[str]:
    most = max(batch.rows for batch in parts.batches)
    if most <= ADVISED_ROWS:
        return []
    return [
        f"The largest batch has {most:,} rows; the web page advises 500 to {ADVISED_ROWS:,} at a "
        "time, and the client for more."
    ]


@dataclass(frozen=True)
class Look:
    """The first and the last bytes of an image."""

    image: str
    start: bytes
    tail: bytes


def _starts(contents: Contents, names: Mapping[str, str]) -> Iterator[Look]:
    with contents.store.open("rb", buffering=0) as store:
        for image, name in names.items():
            member = contents.members[name]
            if not member.size:
                continue
            start = os.pread(store.fileno(), min(START, member.size), member.offset)
            length = min(START, member.size)
            end = member.offset + member.size
            tail = os.pread(store.fileno(), length, end - length)
            if start.startswith(TAKEN[0]) and END_OF_JPEG not in tail:
                length = min(TAIL, member.size)
                tail = os.pread(store.fileno(), length, end - length)
            yield Look(image, start, tail)


def _sampled(index: ZipIndex, names: Mapping[str, str]) -> Iterator[Look]:
    images = list(names)
    for position in sorted({0, len(images) // 2, len(images) - 1}):
        image = images[position]
        size = index.members[names[image]].info.file_size
        if not size or size > LARGEST_SAMPLE:
            continue
        try:
            data = b"".join(index.chunks(names[image]))
        except ExportError:  # damaged; VERIFY is for that
            continue
        yield Look(image, data[:START], data[-TAIL:])


def _not_images(looks: Iterable[Look]) -> Iterator[str]:
    others, texts, cut, looked_at = Cases(), Cases(), Cases(), 0
    for look in looks:
        looked_at += 1
        if is_taken(look.start):
            if look.start.startswith(TAKEN[0]) and END_OF_JPEG not in look.tail:
                cut.add(look.image)
        elif _is_text(look.start):
            texts.add(look.image)
        else:
            others.add(f"{look.image} ({_what_it_is(look.start)})")
    of = f"({looked_at:,} were looked at)"
    yield from others.sentence(
        "image is",
        "images are",
        f"no JPEG, PNG, GIF or SVG by the first bytes {of}, and the client stops there midway",
    )
    yield from texts.sentence(
        "image is", "images are", f"a text, not a picture {of}, and the client uploads it as text"
    )
    yield from cut.sentence(
        "image is",
        "images are",
        f"a JPEG without its end {of}, so probably cut off while it was copied; volunteers see a "
        "part of it",
    )


def _is_text(start: bytes) -> bool:
    """Whether the client takes a file's first bytes for text/plain or JSON; not HTML."""
    text = start.decode(errors="ignore")
    return (
        len(text.encode()) >= len(start) - 3  # a character may be cut at the end
        and not re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]", text)
        and WEB_PAGE.match(start) is None
    )


def is_taken(start: bytes) -> bool:
    """Whether an image's first bytes are of a kind that Zooniverse's client takes."""
    return start.startswith(TAKEN) or SVG.match(start) is not None


def _what_it_is(start: bytes) -> str:
    for signature, what in OTHERS.items():
        if start.startswith(signature):
            return what
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "a WebP"
    if start[4:8] == b"ftyp":
        return "a HEIC or film"
    return "a web page" if WEB_PAGE.match(start) else "of an unknown kind"
