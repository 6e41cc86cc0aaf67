"""What an archive has in the place of an image that its manifest names and that is not there."""

import unicodedata
from collections.abc import Collection, Iterable, Sequence

from splitter.manifest.text import bare, short, unwrapped

COMPARED = 100
"""Missing names that are compared with the archive's; one pair is shown."""

# Programs that know no UTF-8 show a name in the machine's code page, or write it so.
CODE_PAGES = ("cp1252", "cp437", "cp850", "mac_roman", "latin-1")


def instead(missing: Sequence[str], images: Collection[str], names: Iterable[str]) -> str:
    """Half a sentence on one of the missing images that the archive has by another name, or "".

    Args:
        missing: names from the manifest.
        images: the archive's files by their names relative to the manifest.
        names: all of its files.
    """
    if not missing:
        return ""
    by_key: dict[str, str] = {}
    by_stem: dict[str, str] = {}
    for name in [*sorted(images), *names]:
        by_key.setdefault(_key(name), name)
        by_stem.setdefault(_key(name).rpartition(".")[0], name)
    for name in missing:
        found = next((by_key[key] for key in _keys(name) if key in by_key), None)
        if found and found != name:
            return f"the archive has '{short(found)}' for '{short(name)}': {_why(name, found)}; "
    for name in missing:
        found = by_key.get(_key(name))
        if found == name:
            return (
                f"the archive has '{short(found)}', but not beside the manifest: manifest and "
                "images stand in different folders; put the manifest beside the images; "
            )
    for name in missing:
        key = _key(name)
        found = by_stem.get(key.rpartition(".")[0]) or by_stem.get(key)
        if found and key and _extension(found) != _extension(name):
            return f"the archive has '{short(found)}' for '{short(name)}': another extension; "
    return ""


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
    """What is left of a name without folders, blanks, case and the way accents are spelled."""
    base = bare(name.replace("\\", "/").rstrip("/").rpartition("/")[2].partition("?")[0])
    return unicodedata.normalize("NFKC", base).casefold()


def _extension(name: str) -> str:
    return _key(name).rpartition(".")[2]


def _why(name: str, found: str) -> str:
    """The difference between a name and the file that it means."""
    if unwrapped(name) != bare(name):
        return "the manifest has quotation marks or a formula (=) around the name"
    if "://" in name:
        return "the manifest has a URL instead of a file name"
    if "\\" in name or name.startswith("/") or name.count("/") > found.count("/"):
        return "the manifest has a path instead of a file name"
    if name.count("/") < found.count("/"):
        return "the image stands in a folder that the manifest does not name"
    if bare(name) != name and bare(name).casefold() == bare(found).casefold():
        return "the manifest has blanks or invisible characters around the name"
    if bare(found) != found:
        return "the file's name has blanks or invisible characters around it"
    if name.casefold() == found.casefold():
        return "other letter case, small and capital letters count"
    if unicodedata.normalize("NFKC", name).casefold() == (
        unicodedata.normalize("NFKC", found).casefold()
    ):
        return "letters spelled in another way"
    if name.rpartition("/")[2] == found.rpartition("/")[2]:
        return "the image stands in another folder"
    return "letters in another encoding"
