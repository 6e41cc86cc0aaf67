"""What a file is, by its first bytes or by what it holds, whatever it is called."""

import re
import tarfile
from collections.abc import Collection
from html import unescape
from typing import Literal, cast

from splitter.archives.members import ArchiveError
from splitter.archives.signatures import (
    DISK_IMAGES,
    START,
    WEB_PAGE,
    XML,
    Kind,
    Signature,
    recognise,
    text_of,
)
from splitter.archives.zip_directory import Read, ends_as_zip

Format = Literal["zip", "tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"]

BLOCK = 512
"""Bytes of a tar's header (POSIX.1-2017, pax, ustar Interchange Format)."""

REPLACED = "\ufffd".encode()
"""The character that a program puts for bytes that are no text."""

AS_TEXT = (b"PK\3\4", b"\x1f" + REPLACED, REPLACED + b"7zXZ")

REZIP = "unpack it, and make an ordinary ZIP of its content"
SEND_INSTEAD = "send the export instead"
EXPORT_AGAIN = "the download or the export went wrong: export it again"

ADVICE = {
    Kind.ZIP: REZIP,
    Kind.COMPRESSED: REZIP,
    Kind.ARCHIVE: REZIP,
    Kind.PROGRAM: REZIP,
    Kind.DOCUMENT: SEND_INSTEAD,
    Kind.IMAGE: "zip the images together with their manifest.csv",
    Kind.APPLE_NOTES: "send the file itself, whose name has no '._' in front",
    Kind.WEB_PAGE: EXPORT_AGAIN,
    Kind.XML: EXPORT_AGAIN,
}
"""What helps, by the kind of a file that was sent in the archive's place."""

# Documents that are ZIPs in themselves, and the files and folders by which each is known.
# ECMA-376, part 2; EPUB 3.3, OCF; ODF 1.3, part 2; JAR File Specification; KML 2.3; Darwin Core
# text guide.
DOCUMENTS: list[tuple[tuple[str, ...], str]] = [
    (("[Content_Types].xml", "xl/"), "an Excel file"),
    (("[Content_Types].xml", "word/"), "a Word file"),
    (("[Content_Types].xml", "ppt/"), "a PowerPoint file"),
    (("[Content_Types].xml",), "an Office document"),
    (("META-INF/container.xml",), "an e-book (.epub)"),
    (("mimetype", "META-INF/manifest.xml"), "an OpenDocument file, such as .ods or .odt"),
    (("mimetype",), "the document of another program"),
    (("AndroidManifest.xml",), "an Android app (.apk)"),
    (("META-INF/MANIFEST.MF",), "a Java program (.jar)"),
    (("Index/Document.iwa",), "a Numbers, Pages or Keynote document"),
    (("doc.kml",), "a Google Earth file (.kmz)"),
    (("meta.xml",), "a Darwin Core archive, which holds data and no images"),
]


def identify(read: Read, size: int) -> Format:
    """Tell an archive's format by its content, whatever it is called.

    Args:
        read: gives bytes of it: its first, and its last where a ZIP may begin with something else.
        size: bytes that it has.

    Returns:
        What it is read as. What a compressed file holds is known when it is read: see
        ``check_tar``.

    Raises:
        ArchiveError: if it is nothing that can be read, with what it is instead.
    """
    start = read(0, min(START, size))
    if start.startswith(AS_TEXT) and start.count(REPLACED) > 3:
        raise ArchiveError(
            "The archive was destroyed by a program that took it for text when it sent or saved "
            "it; export it again, and transfer it as a file."
        )
    found = recognise(start)
    if found and found.kind is Kind.ZIP:
        return "zip"
    if found and found.kind is Kind.COMPRESSED:
        return cast("Format", f"tar.{found.suffix}")
    if is_tar(start):
        return "tar"
    if ends_as_zip(read, size):
        return "zip"
    if not start:
        raise ArchiveError(f"The export is empty, not a ZIP or tar archive; {EXPORT_AGAIN}.")
    what, advice = _disk_image(read, size) or describe(start)
    raise ArchiveError(f"The export is {what}, not a ZIP or tar archive; {advice}.")


def _disk_image(read: Read, size: int) -> tuple[str, str] | None:
    for image in DISK_IMAGES:
        if abs(image.at) < size and read(image.at % size, len(image.magic)) == image.magic:
            return image.name, REZIP
    return None


def document(names: Collection[str]) -> str | None:
    """What document an archive without a manifest is, by the names of its files; None if none."""
    for parts, what in DOCUMENTS:
        if all(_has(names, part) for part in parts):
            return what
    return None


def _has(names: Collection[str], part: str) -> bool:
    return part in names or (part.endswith("/") and any(name.startswith(part) for name in names))


def is_tar(block: bytes) -> bool:
    """Whether a file that begins with ``block`` is a tar: its first header's checksum is right.

    Tars of Unix V7 have nothing else to be known by.
    """
    try:
        tarfile.TarInfo.frombuf(block[:BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def check_tar(start: bytes, compression: str) -> None:
    """Make sure that a compressed file holds a tar.

    Args:
        start: the first ``BLOCK`` bytes of what it holds, or all there are.

    Raises:
        ArchiveError: with what it holds instead.
    """
    # Of a damaged tar the name of its format is left, and what is wrong is said where it is read.
    # A tar of nothing is all zeros.
    if is_tar(start) or start[257:262] == b"ustar" or (start and not start.strip(b"\0")):
        return
    what, _ = describe(start)
    raise ArchiveError(
        f"The export is a .{compression} file that holds {what}, where a tar was expected; {REZIP}."
    )


def describe(start: bytes) -> tuple[str, str]:
    """What a file is that begins so, and what a person can do with it."""
    if not start:
        return "nothing", EXPORT_AGAIN
    if found := recognise(start):
        return _named(found, start), ADVICE[found.kind]
    if not start.strip(b"\0"):
        return "a file that begins with nothing but zeros", EXPORT_AGAIN
    if text := (text_of(start) or "").strip():
        return (
            f"a text file that begins with '{text.splitlines()[0][:40]}'",
            "send the export, images and manifest in a ZIP",
        )
    return (
        f"no format that is known here (it begins with the bytes {start[:8].hex(' ')}, as one of "
        "the later parts of a split archive may)",
        EXPORT_AGAIN,
    )


def _named(found: Signature, start: bytes) -> str:
    """The name of a recognised file, with the title of a web page and the code of an S3 error."""
    text = text_of(start) or ""
    if found is WEB_PAGE and (
        title := re.search(r"<title[^>]*>(.*?)</title", text, re.IGNORECASE | re.DOTALL)
    ):
        name = " ".join(unescape(title[1]).split())[:80]
        return f"a web page titled {name!r} (HTML)" if name else found.name
    if found is XML and (code := re.search(r"<Code>(\w+)</Code>", text)):
        return f"{found.name} that says {code[1]}"
    return found.name
