"""What a file is, by its first bytes or by what it holds, whatever it is called."""

import re
import tarfile
from collections.abc import Collection
from html import unescape
from typing import Literal, cast

from splitter.archives.members import ArchiveError
from splitter.archives.zip_directory import Read, ends_as_zip

Format = Literal["zip", "tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"]

START = 4096
"""Bytes from the start of a file that tell what it is."""

BLOCK = 512
"""Bytes of a tar's header (POSIX.1-2017, pax, ustar Interchange Format)."""

ZIP_STARTS = (
    b"PK\3\4",  # APPNOTE 4.3.7
    b"PK\5\6",  # 4.3.16, a ZIP of nothing
    b"PK\7\x08",  # 8.5.4, of several volumes, or once meant to be
    b"PK00PK",  # 8.5.5, of one volume, where several were expected
)

COMPRESSED: dict[bytes, str] = {
    b"\x1f\x8b": "gz",  # RFC 1952, section 2.3.1
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",  # The .xz File Format, section 2.1.1.1
    b"\x28\xb5\x2f\xfd": "zst",  # RFC 8878, section 3.1.1
    # Frames to be skipped, which parallel compressors put in front: section 3.1.2.
    **{bytes([0x50 + number]) + b"\x2a\x4d\x18": "zst" for number in range(16)},
}

REPLACED = "\ufffd".encode()
"""What a program puts for bytes that are no text."""

AS_TEXT = (b"PK\3\4", b"\x1f" + REPLACED, REPLACED + b"7zXZ")

REZIP = "unpack it, and make an ordinary ZIP of what it holds"
SEND_INSTEAD = "send the export instead"
EXPORT_AGAIN = "the download or the export went wrong: export it again"

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

# Images of disks, which begin with anything: where what tells stands, from the end if negative.
# ECMA-119, section 8.4; Apple's disk images have their record of 512 bytes at the end.
DISK_IMAGES: list[tuple[int, bytes, str]] = [
    (16 * 2048 + 1, b"CD001", "a disk image (.iso)"),
    (-512, b"koly", "a macOS disk image (.dmg)"),
]

# The first bytes, what they are of, and what helps. https://en.wikipedia.org/wiki/List_of_file_signatures
OTHERS: list[tuple[bytes, str, str]] = [
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive (.7z)", REZIP),
    (b"RE\x7e\x5e", "an old RAR archive", REZIP),
    (b"\x89LZO\0\r\n\x1a\n", "a file compressed by lzop (.lzo)", REZIP),
    (b"LRZI", "a file compressed by lrzip (.lrz)", REZIP),
    (b"\x02\x21\x4c\x18", "a file compressed by LZ4 (.lz4)", REZIP),
    (b"Rar!\x1a\x07", "a RAR archive", REZIP),
    (b"070701", "a cpio archive", REZIP),
    (b"070702", "a cpio archive", REZIP),
    (b"070707", "a cpio archive", REZIP),
    (b"\xc7\x71", "a cpio archive", REZIP),
    (b"\x1f\x9d", "a file compressed by Unix compress (.Z)", REZIP),
    (b"LZIP", "a file compressed by lzip (.lz)", REZIP),
    (b"\x5d\0\0", "a file compressed by LZMA (.lzma)", REZIP),
    (b"\x04\x22\x4d\x18", "a file compressed by LZ4 (.lz4)", REZIP),
    (b"MSCF", "a Windows cabinet (.cab)", REZIP),
    (b"MSWIM\0\0\0", "a Windows disk image (.wim)", REZIP),
    (b"xar!", "a macOS package (.pkg or .xar)", REZIP),
    (b"StuffIt", "a StuffIt archive (.sit)", REZIP),
    (b"SIT!", "a StuffIt archive (.sit)", REZIP),
    (b"!<arch>\n", "an ar archive", REZIP),
    (b"MZ", "a Windows program (.exe), perhaps a self-extracting archive", REZIP),
    (b"\x7fELF", "a Linux program, perhaps a self-extracting archive", REZIP),
    (b"\xca\xfe\xba\xbe", "a macOS program", REZIP),
    (b"#!", "a script, perhaps a self-extracting archive", REZIP),
    (b"bplist00", "a page that Safari saved (.webarchive)", EXPORT_AGAIN),
    (b"%PDF-", "a PDF document", SEND_INSTEAD),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file", SEND_INSTEAD),
    (b"\xff\xd8\xff", "a single JPEG image", "zip it together with its manifest.csv"),
    (b"\x89PNG\r\n", "a single PNG image", "zip it together with its manifest.csv"),
    (b"GIF8", "a single GIF image", "zip it together with its manifest.csv"),
    (b"II*\0", "a single TIFF image", "zip it together with its manifest.csv"),
    (b"MM\0*", "a single TIFF image", "zip it together with its manifest.csv"),
    (b"\0\5\x16\7", "macOS's notes about a file (AppleDouble)", "send the file without '._'"),
    (b"\0\5\x16\0", "macOS's notes about a file (AppleSingle)", "send the file itself"),
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
    if start.startswith(ZIP_STARTS):
        return "zip"
    for magic, compression in COMPRESSED.items():
        if start.startswith(magic):
            return cast("Format", f"tar.{compression}")
    if is_tar(start):
        return "tar"
    if ends_as_zip(read, size):
        return "zip"
    if not start:
        raise ArchiveError(f"The export is empty, not a ZIP or tar archive; {EXPORT_AGAIN}.")
    what, advice = _disk_image(read, size) or describe(start)
    raise ArchiveError(f"The export is {what}, not a ZIP or tar archive; {advice}.")


def _disk_image(read: Read, size: int) -> tuple[str, str] | None:
    for place, magic, what in DISK_IMAGES:
        position = place % size if size else 0
        if abs(place) < size and read(position, len(magic)) == magic:
            return what, REZIP
    return None


def document(names: Collection[str]) -> str | None:
    """What document an archive without a manifest is, by the names of its files; None if none."""
    for parts, what in DOCUMENTS:
        if all(_has(names, part) for part in parts):
            return what
    return None


def _has(names: Collection[str], part: str) -> bool:
    return part in names or (part.endswith("/") and any(name.startswith(part) for name in names))


PAGE = re.compile(
    r"(?>(?:<\?.*?\?>|<!--.*?-->)\s*)*+<(!doctype html|html|head|body)", re.IGNORECASE | re.DOTALL
)
"""How a web page begins, behind what XML and comments may put in front."""


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
    if start.startswith(ZIP_STARTS):
        return "a ZIP", REZIP
    for magic, compression in COMPRESSED.items():
        if start.startswith(magic):
            return f"a .{compression} file", REZIP
    for magic, what, advice in OTHERS:
        if start.startswith(magic):
            return what, advice
    if start[4:8] == b"ftyp":
        return "a film, or a single HEIC image", SEND_INSTEAD
    if not start.strip(b"\0"):
        return "a file that begins with nothing but zeros", EXPORT_AGAIN
    return _describe_text(start) or (
        f"no format that is known here (it begins with the bytes {start[:8].hex(' ')}, as one of "
        "the later parts of a split archive may)",
        EXPORT_AGAIN,
    )


def _describe_text(start: bytes) -> tuple[str, str] | None:
    encoding = "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    text = start.decode(encoding, errors="ignore").lstrip()
    if not text or re.search(r"[\x00-\x08\x0e-\x1f]", text):
        return None
    if PAGE.match(text):
        title = re.search(r"<title[^>]*>(.*?)</title", text, re.IGNORECASE | re.DOTALL)
        name = " ".join(unescape(title[1]).split())[:80] if title else ""
        return f"a web page{f' titled {name!r}' if name else ''} (HTML)", EXPORT_AGAIN
    if text.startswith("<"):
        code = re.search(r"<Code>(\w+)</Code>", text)
        return f"an XML document{f' that says {code[1]}' if code else ''}", EXPORT_AGAIN
    line = text.splitlines()[0][:40]
    return f"a text file that begins with '{line}'", "send the export, images and manifest in a ZIP"
