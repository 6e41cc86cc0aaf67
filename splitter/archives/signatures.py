"""Recognises a file's kind by its first bytes.

Sources: https://www.iana.org, https://en.wikipedia.org/wiki/List_of_file_signatures, libmagic's
"images", "archive" and "compress". To add a kind of file, add a line to ``SIGNATURES``.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from splitter.sentences import Words

START = 4096
"""Bytes from the start of a file that ``recognise`` needs."""


class Kind(Enum):
    """A group of files with the same advice."""

    ZIP = auto()
    COMPRESSED = auto()  # a single compressed file; it may contain a tar
    ARCHIVE = auto()  # of an unsupported format; also disk images, self-extracting programs
    DOCUMENT = auto()
    IMAGE = auto()
    APPLE_NOTES = auto()  # metadata that macOS stores beside a file
    WEB_PAGE = auto()  # or another XML document


@dataclass(frozen=True, slots=True)
class Signature:
    """A kind of file.

    Attributes:
        name: with its article, for a sentence.
        magics: the bytes at position ``at`` that identify it.
        suffix: for compressed files, without the dot.
        is_text: whether files of this kind are text.
    """

    kind: Kind
    name: Words
    magics: tuple[bytes, ...]
    at: int = 0
    suffix: str = ""
    is_text: bool = False


def _of(kind: Kind, name: str, *magics: bytes, **options: Any) -> Signature:
    return Signature(kind, Words(name), magics, **options)


SIGNATURES = (
    # APPNOTE 4.3.7; 4.3.16, without files; 8.5.4 and 8.5.5, of several volumes, or once meant to be
    _of(Kind.ZIP, "a ZIP", b"PK\3\4", b"PK\5\6", b"PK\7\x08", b"PK00PK"),
    # RFC 1952, section 2.3.1
    _of(Kind.COMPRESSED, "a .gz file", b"\x1f\x8b", suffix="gz"),
    _of(Kind.COMPRESSED, "a .bz2 file", b"BZh", suffix="bz2"),
    # The .xz File Format, section 2.1.1.1
    _of(Kind.COMPRESSED, "a .xz file", b"\xfd7zXZ\0", suffix="xz"),
    # RFC 8878, section 3.1.1; 3.1.2: frames to be skipped, which parallel compressors put in front
    _of(
        Kind.COMPRESSED,
        "a .zst file",
        b"\x28\xb5\x2f\xfd",
        *(bytes([byte]) + b"\x2a\x4d\x18" for byte in range(0x50, 0x60)),
        suffix="zst",
    ),
    _of(Kind.ARCHIVE, "a 7-Zip archive (.7z)", b"7z\xbc\xaf\x27\x1c"),
    _of(Kind.ARCHIVE, "a RAR archive", b"Rar!\x1a\x07"),
    _of(Kind.ARCHIVE, "an old RAR archive", b"RE\x7e\x5e"),
    _of(Kind.ARCHIVE, "a cpio archive", b"070701", b"070702", b"070707", b"\xc7\x71", b"\x71\xc7"),
    _of(Kind.ARCHIVE, "a file compressed by Unix compress (.Z)", b"\x1f\x9d"),
    _of(Kind.ARCHIVE, "a file compressed by lzop (.lzo)", b"\x89LZO\0\r\n\x1a\n"),
    _of(Kind.ARCHIVE, "a file compressed by lrzip (.lrz)", b"LRZI"),
    _of(Kind.ARCHIVE, "a file compressed by lzip (.lz)", b"LZIP"),
    _of(Kind.ARCHIVE, "a file compressed by LZMA (.lzma)", b"\x5d\0\0"),
    _of(Kind.ARCHIVE, "a file compressed by LZ4 (.lz4)", b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"),
    _of(Kind.ARCHIVE, "a Windows cabinet (.cab)", b"MSCF"),
    _of(Kind.ARCHIVE, "a Windows disk image (.wim)", b"MSWIM\0\0\0"),
    _of(Kind.ARCHIVE, "a macOS package (.pkg or .xar)", b"xar!"),
    _of(Kind.ARCHIVE, "a StuffIt archive (.sit)", b"StuffIt", b"SIT!"),
    _of(Kind.ARCHIVE, "an ar archive", b"!<arch>\n"),
    _of(Kind.ARCHIVE, "a Windows program (.exe), perhaps a self-extracting archive", b"MZ"),
    _of(Kind.ARCHIVE, "a Linux program, perhaps a self-extracting archive", b"\x7fELF"),
    _of(Kind.ARCHIVE, "a macOS program", b"\xca\xfe\xba\xbe"),
    _of(Kind.ARCHIVE, "a script, perhaps a self-extracting archive", b"#!", is_text=True),
    _of(Kind.DOCUMENT, "a PDF document", b"%PDF", is_text=True),
    _of(Kind.DOCUMENT, "an old Excel or Word file", b"\xd0\xcf\x11\xe0"),
    _of(Kind.DOCUMENT, "a rich-text document (.rtf)", b"{\\rtf", is_text=True),
    _of(Kind.IMAGE, "a JPEG image", b"\xff\xd8\xff"),
    _of(Kind.IMAGE, "a PNG image", b"\x89PNG\r\n"),
    _of(Kind.IMAGE, "a GIF image", b"GIF8"),
    _of(Kind.IMAGE, "a TIFF image", b"II*\0", b"MM\0*"),
    _of(Kind.IMAGE, "a BigTIFF image", b"II+\0", b"MM\0+"),
    _of(Kind.IMAGE, "a BMP image", b"BM"),
    _of(Kind.IMAGE, "a Photoshop file", b"8BPS"),
    _of(Kind.IMAGE, "a JPEG 2000 image", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"),
    _of(Kind.IMAGE, "a JPEG XL image", b"\xff\x0a", b"\0\0\0\x0cJXL "),
    _of(Kind.IMAGE, "a WebP image", b"WEBP", at=8),
    _of(Kind.IMAGE, "a HEIC image or a film", b"ftyp", at=4),
    _of(Kind.APPLE_NOTES, "macOS's notes about a file (AppleDouble)", b"\0\5\x16\7"),
    _of(Kind.APPLE_NOTES, "macOS's notes about a file (AppleSingle)", b"\0\5\x16\0"),
    _of(Kind.WEB_PAGE, "a page that Safari saved (.webarchive)", b"bplist00"),
)
"""Kinds of files by their first bytes. The first match counts."""

WEB_PAGE = _of(Kind.WEB_PAGE, "a web page (HTML)")
XML = _of(Kind.WEB_PAGE, "an XML document")

MARKUP = re.compile(
    # Atomic groups keep the pattern linear: a comment is never retried at another length.
    r"\s*+(?P<xml>(?><\?.*?\?>|<!--.*?-->)\s*+)*+"
    r"(?:<(?P<page>!doctype\s++html|html|head|body|table)\b|(?P<other><(?:!doctype|\?xml|error)\b))?",
    re.IGNORECASE | re.DOTALL,
)
"""The start of a web page or an XML document, with an XML declaration and comments in front."""

BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be", b"\xef\xbb\xbf": "utf-8"}

CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Characters that do not occur in text."""


def recognise(start: bytes) -> Signature | None:
    """The signature of a file that begins with ``start``; None for plain text and unknown kinds."""
    start = start[:START]
    text = text_of(start)
    for signature in SIGNATURES:
        magics = signature.magics
        if text is not None and not signature.is_text:
            # A table's first cell can be BMNH, MZ or 070701.
            magics = tuple(magic for magic in magics if not magic.isascii())
        if start.startswith(magics, signature.at):
            return signature
    return markup(text) if text is not None else None


def markup(text: str) -> Signature | None:
    """``WEB_PAGE``, ``XML`` or None."""
    found = MARKUP.match(text)
    if not found:
        return None
    if found["page"]:
        return WEB_PAGE
    return XML if found["xml"] or found["other"] else None


def text_of(start: bytes) -> str | None:
    """The first bytes of a file as text without a byte order mark, or None for binary data.

    Skips bytes that are not UTF-8, or not UTF-16 after its byte order mark, so that text in other
    encodings counts as text.
    """
    mark = next((mark for mark in BYTE_ORDER_MARKS if start.startswith(mark)), b"")
    encoding = BYTE_ORDER_MARKS.get(mark, "utf-8")
    text = start[len(mark) :].decode(encoding, errors="ignore")
    return None if not text or CONTROL.search(text) else text
