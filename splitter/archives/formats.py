"""Identifies an archive's format by its content and explains files that are not archives."""

import re
import tarfile
from collections.abc import Collection
from contextlib import suppress
from html import unescape
from typing import Literal, cast

from splitter.archives.damage import DAMAGE
from splitter.archives.members import ArchiveError
from splitter.archives.signatures import START, WEB_PAGE, XML, Kind, Signature, recognise, text_of
from splitter.archives.streams import DECOMPRESSORS
from splitter.archives.zip_directory import Read, ends_as_zip
from splitter.sentences import Sentence, Words, shown

Format = Literal["zip", "tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"]

BLOCK = 512
"""Bytes of a tar's header (POSIX.1-2017, pax, ustar Interchange Format)."""

REPLACED = "\ufffd".encode()
"""The character that replaces bytes that are not valid text."""

LONGEST_LINE = 40

AS_TEXT = (b"PK\3\4", b"\x1f" + REPLACED, REPLACED + b"7zXZ")

SEND_INSTEAD = "send the export instead"

NO_ARCHIVE = Sentence(
    "archive.of-another-format", "The export is {what}, not a ZIP or tar archive; {advice}."
)
ADVICE = {
    Kind.DOCUMENT: SEND_INSTEAD,
    Kind.IMAGE: "zip the images together with their manifest.csv",
    Kind.APPLE_NOTES: "send the file itself, whose name does not begin with '._'",
    Kind.WEB_PAGE: "the download or the export went wrong: export it again",
}
"""What to do about a file that was sent instead of an archive, if it is not ``UNPACK``."""

UNPACK = "unpack it, and make an ordinary ZIP of its content"

UNKNOWN = Sentence(
    "archive.unknown-format",
    "The export is not a ZIP or tar archive, and its format is unknown (it begins with the bytes "
    "{bytes}; it may be a later part of a split archive). The download or the export went wrong: "
    "export it again.",
)
SENT_AS_TEXT = Sentence(
    "archive.sent-as-text",
    "The archive was destroyed by a program that sent or saved it as text; export it again, and "
    "transfer it as a file.",
)
DISK_IMAGES = (
    # ECMA-119, section 8.4
    (b"CD001", 16 * 2048 + 1, "a disk image (.iso)"),
    # Apple's disk images have a record of 512 bytes at their end.
    (b"koly", -512, "a macOS disk image (.dmg)"),
)
"""Magic bytes, position and name of files whose first bytes may be anything."""

# Documents that are ZIP files, recognised by the files and folders inside. Sources: ECMA-376, part
# 2; EPUB 3.3, OCF; ODF 1.3, part 2; JAR File Specification; KML 2.3; Darwin Core text guide.
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
    """The format of an archive by its content, whatever its name.

    A compressed file without a tar is refused here if its first bytes reveal that. Otherwise it is
    refused when it is read; see ``check_tar``.

    Args:
        read: returns bytes from the start, and from the end if a ZIP may follow another file.
        size: bytes of the file.

    Raises:
        ArchiveError: names the file's kind if it is not a readable archive.
    """
    start = read(0, min(START, size))
    if start.startswith(AS_TEXT) and start.count(REPLACED) > 3:
        raise ArchiveError(SENT_AS_TEXT)
    found = recognise(start)
    if found and found.kind is Kind.ZIP:
        return "zip"
    if found and found.kind is Kind.COMPRESSED:
        content = b""
        with suppress(*DAMAGE, OSError):  # reported when the whole file is read
            content = DECOMPRESSORS[found.suffix]().decompress(start, BLOCK)
        if len(content) >= BLOCK:
            check_tar(content, found.suffix)
        return cast("Format", f"tar.{found.suffix}")
    if is_tar(start):
        return "tar"
    if ends_as_zip(read, size):
        return "zip"
    for magic, at, name in DISK_IMAGES:
        if abs(at) < size and read(at % size, len(magic)) == magic:
            raise _no_archive(name, UNPACK)
    if not start.strip(b"\0"):
        what = "a file that begins with nothing but zeros" if start else "empty"
        raise _no_archive(what, ADVICE[Kind.WEB_PAGE])
    _refuse_known(start)
    raise ArchiveError(UNKNOWN, bytes=Words(start[:8].hex(" ")))


def document(names: Collection[str]) -> str | None:
    """The kind of document that is a ZIP with files of these names, or None."""
    known = {*names, *(name.partition("/")[0] + "/" for name in names)}
    return next((what for parts, what in DOCUMENTS if known.issuperset(parts)), None)


def is_tar(block: bytes) -> bool:
    """Whether ``block`` begins with a tar header: its checksum is correct.

    Unix V7 tars have no other mark. Other fields are checked when the tar is read.
    """
    header = block[:BLOCK]
    if len(header) < BLOCK:
        return False
    try:
        checksum = tarfile.nti(header[148:156])  # type: ignore[attr-defined]
        return checksum in tarfile.calc_chksums(header)  # type: ignore[attr-defined]
    except tarfile.HeaderError:
        return False


def check_tar(start: bytes, compression: str) -> None:
    """Refuse a compressed file that does not contain a tar.

    Args:
        start: the first ``BLOCK`` bytes of the content, or all of it.

    Raises:
        ArchiveError: names the kind of the content.
    """
    if not start:
        raise _no_archive(f"an empty .{compression} file", ADVICE[Kind.WEB_PAGE])
    # A damaged tar is refused when it is read. A tar without files is all zeros.
    if is_tar(start) or start[257:262] == b"ustar" or not start.strip(b"\0"):
        return
    outside = f"a .{compression} file that holds "
    _refuse_known(start, outside)
    raise _no_archive(f"{outside}a file of an unknown format", UNPACK)


def _no_archive(what: str, advice: str) -> ArchiveError:
    return ArchiveError(NO_ARCHIVE, what=Words(what), advice=Words(advice))


def _refuse_known(start: bytes, outside: str = "") -> None:
    """Raise ``ArchiveError`` for a file of a known kind or a text; ``outside`` is put in front."""
    if found := recognise(start):
        raise _no_archive(outside + _named(found, start), ADVICE.get(found.kind, UNPACK))
    lines = (text_of(start) or "").strip().splitlines()
    if lines:
        what = f"{outside}a text file that begins with {shown(lines[0][:LONGEST_LINE])}"
        raise _no_archive(what, "send the export, images and manifest in a ZIP")


def _named(found: Signature, start: bytes) -> str:
    """The name of a recognised file, with the title of a web page and the code of an S3 error."""
    text = text_of(start) or ""
    title = re.search(r"<title[^>]*>(.*?)</title", text, re.IGNORECASE | re.DOTALL)
    if found is WEB_PAGE and title and (name := " ".join(unescape(title[1]).split())):
        return f"a web page titled {shown(name)} (HTML)"
    if found is XML and (code := re.search(r"<Code>(\w+)</Code>", text)):
        return f"{found.name} that says {shown(code[1])}"
    return found.name
