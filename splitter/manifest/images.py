"""Finds the reason why a row has no image, for ``diagnosis``."""

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice

from splitter.archives.members import plain
from splitter.manifest.text import MANIFEST, UnreadableError, bare
from splitter.sentences import Cases, Problem, Sentence, Words, shown

COMPARED = 100
"""Names without a file that are compared with the archive's files. One pair is shown."""

LONGEST_COMPARED = 300
"""Characters compared, from the end of a name."""

# Programs without UTF-8 read or write names in the machine's code page.
CODE_PAGES = ("cp1252", "cp437", "cp850", "mac_roman", "latin-1")

AROUND = " \t\"'`=\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u201b\u00ab\u00bb\u00b4"
"""Characters that programs put around a name: quotation marks of all kinds, the ``=`` of a formula.
"""

_ROWS = "The manifest has {number:row|rows} without an image: {first}. "
_PAIR = _ROWS + "The archive has {file} for {name}: "
_CORRECT = " Correct the manifest or export it again."

NOT_THERE = Sentence("manifest.image-not-in-archive", _ROWS.rstrip() + _CORRECT)
OTHER_LETTERS = Sentence(
    "manifest.image-not-in-archive-by-this-spelling",
    _ROWS + "The program that zipped the archive may encode accents and other letters in its own "
    "way; 7-Zip keeps them. Zip or export it again.",
)
SPELLING = Sentence("manifest.image-name-spelled-otherwise", _PAIR + "{difference}." + _CORRECT)
OTHER_FOLDER = Sentence(
    "manifest.image-in-other-folder",
    _PAIR + "the image is in a folder that the manifest does not name. Put the images beside the "
    "manifest and zip them again.",
)
BLANKS_IN_FILE = Sentence(
    "manifest.image-file-with-blanks",
    _PAIR + "the file's name has blanks or invisible characters around it. Rename the file and zip "
    "the export again.",
)
ENCODING = Sentence(
    "manifest.image-name-in-other-encoding",
    _PAIR + "letters in another encoding. Zip the images with a program that writes UTF-8, such as "
    "7-Zip, or export again.",
)
NOT_BESIDE = Sentence(
    "manifest.images-not-beside-manifest",
    _ROWS + "The archive has {file}, but not beside the manifest: manifest and images are in "
    "different folders. Put the manifest beside the images and zip them again.",
)
UNUSABLE = Sentence(
    "manifest.unusable-image",
    "The archive cannot be split as it is: {row} of its manifest names {name}, which {reason}. "
    "In all, {number:row names|rows name} a file that cannot be used.",
)


def missing_image(failure: UnreadableError) -> Problem | None:
    """The rows without an image and, if there is one, a similar file."""
    table, missing = failure.table, Cases()
    for row, cells in table.missing:
        missing.add(where=f"{table.where(row, cells)} {_clause(cells[table.column])}")
    missing.number = table.missing.number
    if not missing.number:
        return None
    named = (cells[table.column] for _, cells in table.missing)
    names = [*islice((name for name in named if name not in ("", MANIFEST)), COMPARED)]
    sentence = NOT_THERE if "".join(names).isascii() else OTHER_LETTERS
    values: dict[str, str] = {}
    if pair := most_similar(names, [*sorted(table.files.by_name), *table.files.names]):
        name, file, sentence, difference = pair
        values = {"name": name, "file": file, "difference": Words(difference)}
    return sentence(**values, **missing.values("; "))


def unusable_image(failure: UnreadableError) -> Problem | None:
    table, files = failure.table, failure.table.files
    for row, cells in table.unusable:
        name = cells[table.column]
        reason = files.unusable[files.of(name) or files.of(plain(name))]
        number, where = table.unusable.number, table.where(row, cells)
        return UNUSABLE(number=number, row=where, name=name, reason=reason)
    return None


def _clause(name: str) -> str:
    if not name:
        return "names no image"
    if name == MANIFEST:
        return "names the manifest as its image"
    return f"names {shown(name)}, which is not in the archive"


def most_similar(
    missing: Sequence[str], names: Iterable[str]
) -> tuple[str, str, Sentence, str] | None:
    """A missing image, a similar file, the sentence about both and their difference.

    Args:
        missing: names from the manifest.
        names: the archive's files, with the names relative to the manifest first.
    """
    by_key: dict[str, str] = {}
    by_stem: dict[str, str] = {}
    for file in names if missing else ():
        by_key.setdefault(_key(file), file)
        by_stem.setdefault(_key(file).rpartition(".")[0], file)
    for name in missing:
        found = next((by_key[key] for key in _keys(name) if key in by_key), name)
        if found != name:
            return name, found, *_difference(name, found)
    for name in missing:
        if by_key.get(_key(name)) == name:
            return name, name, NOT_BESIDE, ""
    for name in missing:
        key = _key(name)
        found = by_stem.get(key.rpartition(".")[0]) or by_stem.get(key, "")
        if found and key and _key(found).rpartition(".")[2] != key.rpartition(".")[2]:
            return name, found, SPELLING, "another extension"
    return None


def _difference(name: str, file: str) -> tuple[Sentence, str]:
    """The sentence about a cell and the most similar file, and the words for it."""
    if unwrapped(name) != bare(name):
        return SPELLING, "the manifest has quotation marks or a formula (=) around the name"
    if "://" in name:
        return SPELLING, "the manifest has a URL instead of a file name"
    if "\\" in name or name[:1] == "/" or name.count("/") > file.count("/"):
        return SPELLING, "the manifest has a path instead of a file name"
    if name.count("/") < file.count("/"):
        return OTHER_FOLDER, ""
    if bare(name) != name and bare(name).casefold() == bare(file).casefold():
        return SPELLING, "the manifest has blanks or invisible characters around the name"
    if bare(file) != file:
        return BLANKS_IN_FILE, ""
    if name.casefold() == file.casefold():
        return SPELLING, "other letter case, and small and capital letters count"
    if name.rpartition("/")[2] == file.rpartition("/")[2]:
        return OTHER_FOLDER, ""
    if _key(name) == _key(file) and name.count("/") == file.count("/"):
        return SPELLING, "letters spelled in another way"
    return ENCODING, ""


def _keys(name: str) -> Iterable[str]:
    yield _key(name)
    yield _key(unwrapped(name))
    for page in CODE_PAGES:
        for written, read in (("utf-8", page), (page, "utf-8")):
            try:
                yield _key(name.encode(written).decode(read))
            except UnicodeError:
                continue


def _key(name: str) -> str:
    """A name without folders, blanks, letter case and differences in Unicode normalisation."""
    name = name[-LONGEST_COMPARED:]  # normalisation takes quadratic time
    base = bare(name.replace("\\", "/").rstrip("/").rpartition("/")[2].partition("?")[0])
    return unicodedata.normalize("NFKC", base).casefold()


def unwrapped(name: str) -> str:
    """A name without the characters that programs put around it."""
    return bare(name).strip(AROUND)
