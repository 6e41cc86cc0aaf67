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
    """The bytes that identify a kind of file.

    Attributes:
        name: with its article, for a sentence.
        at: the position of ``magic``, counted from the end if negative.
        also: further required bytes and their position.
        suffix: for compressed files, without the dot.
        is_text: whether files of this kind are text.
    """

    magic: bytes
    name: Words
    kind: Kind
    at: int = 0
    also: tuple[int, bytes] = (0, b"")
    suffix: str = ""
    is_text: bool = False

    def matches(self, start: bytes) -> bool:
        position, also = self.also
        return start.startswith(self.magic, self.at) and start.startswith(also, position)


def _of(kind: Kind, magic: bytes, name: str, **options: Any) -> Signature:
    return Signature(magic, Words(name), kind, **options)


SIGNATURES = (
    _of(Kind.ZIP, b"PK\3\4", "a ZIP"),  # APPNOTE 4.3.7
    _of(Kind.ZIP, b"PK\5\6", "a ZIP"),  # 4.3.16, without files
    _of(Kind.ZIP, b"PK\7\x08", "a ZIP"),  # 8.5.4, of several volumes, or once meant to be
    _of(Kind.ZIP, b"PK00PK", "a ZIP"),  # 8.5.5, of one volume, where several were expected
    _of(Kind.COMPRESSED, b"\x1f\x8b", "a .gz file", suffix="gz"),  # RFC 1952, section 2.3.1
    _of(Kind.COMPRESSED, b"BZh", "a .bz2 file", suffix="bz2"),
    # The .xz File Format, section 2.1.1.1
    _of(Kind.COMPRESSED, b"\xfd7zXZ\0", "a .xz file", suffix="xz"),
    # RFC 8878, section 3.1.1; 3.1.2: frames to be skipped, which parallel compressors put in front
    _of(Kind.COMPRESSED, b"\x28\xb5\x2f\xfd", "a .zst file", suffix="zst"),
    *(
        _of(Kind.COMPRESSED, bytes([byte]) + b"\x2a\x4d\x18", "a .zst file", suffix="zst")
        for byte in range(0x50, 0x60)
    ),
    _of(Kind.ARCHIVE, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive (.7z)"),
    _of(Kind.ARCHIVE, b"Rar!\x1a\x07", "a RAR archive"),
    _of(Kind.ARCHIVE, b"RE\x7e\x5e", "an old RAR archive"),
    _of(Kind.ARCHIVE, b"070701", "a cpio archive"),
    _of(Kind.ARCHIVE, b"070702", "a cpio archive"),
    _of(Kind.ARCHIVE, b"070707", "a cpio archive"),
    _of(Kind.ARCHIVE, b"\xc7\x71", "a cpio archive"),
    _of(Kind.ARCHIVE, b"\x71\xc7", "a cpio archive"),
    _of(Kind.ARCHIVE, b"\x1f\x9d", "a file compressed by Unix compress (.Z)"),
    _of(Kind.ARCHIVE, b"\x89LZO\0\r\n\x1a\n", "a file compressed by lzop (.lzo)"),
    _of(Kind.ARCHIVE, b"LRZI", "a file compressed by lrzip (.lrz)"),
    _of(Kind.ARCHIVE, b"LZIP", "a file compressed by lzip (.lz)"),
    _of(Kind.ARCHIVE, b"\x5d\0\0", "a file compressed by LZMA (.lzma)"),
    _of(Kind.ARCHIVE, b"\x04\x22\x4d\x18", "a file compressed by LZ4 (.lz4)"),
    _of(Kind.ARCHIVE, b"\x02\x21\x4c\x18", "a file compressed by LZ4 (.lz4)"),
    _of(Kind.ARCHIVE, b"MSCF", "a Windows cabinet (.cab)"),
    _of(Kind.ARCHIVE, b"MSWIM\0\0\0", "a Windows disk image (.wim)"),
    _of(Kind.ARCHIVE, b"xar!", "a macOS package (.pkg or .xar)"),
    _of(Kind.ARCHIVE, b"StuffIt", "a StuffIt archive (.sit)"),
    _of(Kind.ARCHIVE, b"SIT!", "a StuffIt archive (.sit)"),
    _of(Kind.ARCHIVE, b"!<arch>\n", "an ar archive"),
    _of(Kind.ARCHIVE, b"MZ", "a Windows program (.exe), perhaps a self-extracting archive"),
    _of(Kind.ARCHIVE, b"\x7fELF", "a Linux program, perhaps a self-extracting archive"),
    _of(Kind.ARCHIVE, b"\xca\xfe\xba\xbe", "a macOS program"),
    _of(Kind.ARCHIVE, b"#!", "a script, perhaps a self-extracting archive", is_text=True),
    _of(Kind.DOCUMENT, b"%PDF", "a PDF document", is_text=True),
    _of(Kind.DOCUMENT, b"\xd0\xcf\x11\xe0", "an old Excel or Word file"),
    _of(Kind.DOCUMENT, b"{\\rtf", "a rich-text document (.rtf)", is_text=True),
    _of(Kind.IMAGE, b"\xff\xd8\xff", "a JPEG image"),
    _of(Kind.IMAGE, b"\x89PNG\r\n", "a PNG image"),
    _of(Kind.IMAGE, b"GIF8", "a GIF image"),
    _of(Kind.IMAGE, b"II*\0", "a TIFF image"),
    _of(Kind.IMAGE, b"MM\0*", "a TIFF image"),
    _of(Kind.IMAGE, b"II+\0", "a BigTIFF image"),
    _of(Kind.IMAGE, b"MM\0+", "a BigTIFF image"),
    _of(Kind.IMAGE, b"BM", "a BMP image"),
    _of(Kind.IMAGE, b"8BPS", "a Photoshop file"),
    _of(Kind.IMAGE, b"\0\0\0\x0cjP", "a JPEG 2000 image"),
    _of(Kind.IMAGE, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    _of(Kind.IMAGE, b"\xff\x0a", "a JPEG XL image"),
    _of(Kind.IMAGE, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    _of(Kind.IMAGE, b"RIFF", "a WebP image", also=(8, b"WEBP")),
    _of(Kind.IMAGE, b"ftyp", "a HEIC image or a film", at=4),
    _of(Kind.APPLE_NOTES, b"\0\5\x16\7", "macOS's notes about a file (AppleDouble)"),
    _of(Kind.APPLE_NOTES, b"\0\5\x16\0", "macOS's notes about a file (AppleSingle)"),
    _of(Kind.WEB_PAGE, b"bplist00", "a page that Safari saved (.webarchive)"),
)
"""Kinds of files by their first bytes. The first match counts."""

DISK_IMAGES = (
    # ECMA-119, section 8.4
    _of(Kind.ARCHIVE, b"CD001", "a disk image (.iso)", at=16 * 2048 + 1),
    # Apple's disk images have a record of 512 bytes at their end.
    _of(Kind.ARCHIVE, b"koly", "a macOS disk image (.dmg)", at=-512),
)
"""Files whose first bytes may be anything; ``at`` is beyond ``START`` or counted from the end."""

WEB_PAGE = _of(Kind.WEB_PAGE, b"", "a web page (HTML)", is_text=True)
XML = _of(Kind.WEB_PAGE, b"", "an XML document", is_text=True)

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
        # A table's first cell can be BMNH, MZ or 070701.
        is_sure = text is None or signature.is_text or not signature.magic.isascii()
        if is_sure and signature.matches(start):
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
