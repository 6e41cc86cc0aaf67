"""Finds the reason why a row has no image, for ``diagnosis``.

To add a reason, declare its sentence, write a check that compares the cell with the most similar
file, add both to ``REASONS``, and add a manifest to tests/fixtures/cases/tables/by-code.
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence

from splitter.archives.members import plain
from splitter.manifest.text import MANIFEST, UnreadableError, bare
from splitter.sentences import Cases, Problem, Sentence, shown

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
WRAPPED = Sentence(
    "manifest.image-name-wrapped",
    _PAIR + "the manifest has quotation marks or a formula (=) around the name." + _CORRECT,
)
URL = Sentence(
    "manifest.image-name-is-url",
    _PAIR + "the manifest has a URL instead of a file name." + _CORRECT,
)
PATH = Sentence(
    "manifest.image-name-is-path",
    _PAIR + "the manifest has a path instead of a file name." + _CORRECT,
)
IN_FOLDER = Sentence(
    "manifest.image-in-folder",
    _PAIR + "the image is in a folder that the manifest does not name. Put the images beside the "
    "manifest and zip them again.",
)
BLANKS_IN_CELL = Sentence(
    "manifest.image-name-with-blanks",
    _PAIR + "the manifest has blanks or invisible characters around the name." + _CORRECT,
)
BLANKS_IN_FILE = Sentence(
    "manifest.image-file-with-blanks",
    _PAIR + "the file's name has blanks or invisible characters around it. Rename the file and zip "
    "the export again.",
)
CASE = Sentence(
    "manifest.image-name-in-other-case",
    _PAIR + "other letter case, and small and capital letters count." + _CORRECT,
)
SPELLING = Sentence(
    "manifest.image-name-spelled-otherwise",
    _PAIR + "letters spelled in another way." + _CORRECT,
)
OTHER_FOLDER = Sentence(
    "manifest.image-in-other-folder",
    _PAIR + "the image is in another folder. Put the images beside the manifest and zip them "
    "again.",
)
ENCODING = Sentence(
    "manifest.image-name-in-other-encoding",
    _PAIR + "letters in another encoding. Zip the images with a program that writes UTF-8, such as "
    "7-Zip, or export again.",
)
EXTENSION = Sentence("manifest.image-with-other-extension", _PAIR + "another extension." + _CORRECT)
NOT_BESIDE = Sentence(
    "manifest.images-not-beside-manifest",
    _ROWS + "The archive has {file}, but not beside the manifest: manifest and images are in "
    "different folders. Put the manifest beside the images and zip them again.",
)
UNUSABLE = Sentence(
    "manifest.unusable-image",
    "The archive cannot be split as it is: {row} of its manifest names {name}, which {reason}. "
    "{number:row names|rows name} such a file.",
)


def wrong_image(failure: UnreadableError) -> Problem:
    """Rows whose image is not in the archive; if there are none, rows with an unusable image."""
    table, files = failure.table, failure.source.files
    missing = Cases()
    names: list[str] = []
    unusable = 0
    first: dict[str, object] = {}
    for row, cells in table.shaped():
        name = cells[table.column]
        file = files.of(name) or files.of(plain(name))
        if not file:
            missing.add(where=f"{table.where(row, cells)} {_clause(name)}")
            if name not in ("", MANIFEST) and len(names) < COMPARED:
                names.append(name)
        elif reason := files.unusable.get(file):
            unusable += 1
            first = first or {"row": table.where(row, cells), "name": name, "reason": reason}
    if not missing.number:
        return UNUSABLE(number=unusable, **first)
    values = missing.values("; ")
    if pair := most_similar(names, [*sorted(files.by_name), *files.names]):
        sentence, name, file = pair
        return sentence(name=name, file=file, **values)
    return NOT_THERE(**values) if "".join(names).isascii() else OTHER_LETTERS(**values)


def _clause(name: str) -> str:
    if not name:
        return "names no image"
    if name == MANIFEST:
        return "names the manifest as its image"
    return f"names {shown(name)}, which is not in the archive"


def most_similar(missing: Sequence[str], names: Iterable[str]) -> tuple[Sentence, str, str] | None:
    """The sentence, the name and the file of one missing image that has a similar file.

    Args:
        missing: names from the manifest.
        names: the archive's files, with the names relative to the manifest first.
    """
    if not missing:
        return None
    by_key: dict[str, str] = {}
    by_stem: dict[str, str] = {}
    for file in names:
        by_key.setdefault(_key(file), file)
        by_stem.setdefault(_key(file).rpartition(".")[0], file)
    for name in missing:
        found = next((by_key[key] for key in _keys(name) if key in by_key), None)
        if found and found != name:
            return next(why for why, check in REASONS if check(name, found)), name, found
    for name in missing:
        if by_key.get(_key(name)) == name:
            return NOT_BESIDE, name, name
    for name in missing:
        key = _key(name)
        found = by_stem.get(key.rpartition(".")[0]) or by_stem.get(key)
        if found and key and _key(found).rpartition(".")[2] != key.rpartition(".")[2]:
            return EXTENSION, name, found
    return None


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


REASONS: tuple[tuple[Sentence, Callable[[str, str], bool]], ...] = (
    (WRAPPED, lambda name, file: unwrapped(name) != bare(name)),
    (URL, lambda name, file: "://" in name),
    (
        PATH,
        lambda name, file: "\\" in name or name[:1] == "/" or name.count("/") > file.count("/"),
    ),
    (IN_FOLDER, lambda name, file: name.count("/") < file.count("/")),
    (
        BLANKS_IN_CELL,
        lambda name, file: bare(name) != name and bare(name).casefold() == bare(file).casefold(),
    ),
    (BLANKS_IN_FILE, lambda name, file: bare(file) != file),
    (CASE, lambda name, file: name.casefold() == file.casefold()),
    (OTHER_FOLDER, lambda name, file: name.rpartition("/")[2] == file.rpartition("/")[2]),
    (
        SPELLING,
        lambda name, file: _key(name) == _key(file) and name.count("/") == file.count("/"),
    ),
    (ENCODING, lambda name, file: True),
)
"""Reasons why a cell differs from the most similar file. The first match counts."""
