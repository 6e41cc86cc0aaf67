"""Signatures: each room's files are recognised by one table, and text never by accident."""

import pytest

from splitter.archives.signatures import (
    SIGNATURES,
    WEB_PAGE,
    XML,
    Kind,
    Signature,
    recognise,
    text_of,
)

BODY = bytes(range(256))


@pytest.mark.parametrize(
    ("signature", "magic"),
    [(found, magic) for found in SIGNATURES for magic in found.magics],
    ids=lambda value: value.hex() if isinstance(value, bytes) else value.kind.name,
)
def test_every_signature_is_recognised_by_its_own_line(signature: Signature, magic: bytes) -> None:
    assert recognise(bytes(signature.at) + magic + BODY) is signature


@pytest.mark.parametrize(
    ("start", "name"),
    [  # files that are named where a manifest or an image was expected
        (b"PK\3\4\x14\0", "a ZIP"),
        (b"\x1f\x8b\x08\0", "a .gz file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"{\\rtf1\\ansi", "a rich-text document (.rtf)"),
        (b"II*\0\x08\0\0\0", "a TIFF image"),
        (b"MM\0*\0\0\0\x08", "a TIFF image"),
        (b"II+\0\x08\0\0\0", "a BigTIFF image"),
        (b"BM\x36\0\0\0", "a BMP image"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (b"\xff\x0a\x00", "a JPEG XL image"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "a WebP image"),
        (b"\0\0\0\x18ftypheic", "a HEIC image or a film"),
    ],
)
def test_documents_and_images_have_one_name(start: bytes, name: str) -> None:
    found = recognise(start)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "start",
    [
        b"MZ,imageName\n1,a.jpg\n",
        b"BMNH,imageName\n",
        b"0707071,070707.jpg\n",
        b"LZIP\n",
        "Größe,imageName\n".encode(),
        b"Gr\xf6\xdfe,imageName\n",
        b"<i>Quercus</i>,imageName\n",
        b"RIFF\x24\0\0\0WAVE",
        b"",
    ],
)
def test_a_table_is_no_signature(start: bytes) -> None:
    assert recognise(start) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<!DOCTYPE html><html>", WEB_PAGE),
        (" \n<html lang=en>", WEB_PAGE),
        ("<table><tr>", WEB_PAGE),
        ("<?xml version='1.0'?>\n<!-- a -->\n<!doctype  HTML>", WEB_PAGE),
        ("<!-- a --> <body>", WEB_PAGE),
        ("<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", XML),
        ("<Error><Code>", XML),
        ("<!DOCTYPE svg>", XML),
        ("<?xml version", XML),
        ("<!-- not closed", None),
        ("<htmlish>", None),
        ("a <html>", None),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_web_page_is_one_thing_in_every_encoding(
    text: str, expected: object, encoding: str
) -> None:
    assert recognise(text.encode(encoding)) is expected


def test_a_character_that_is_cut_is_left_out_of_the_text() -> None:
    assert text_of("aé".encode()[:-1]) == "a"
    assert text_of(b"a\0b") is None


def test_every_kind_is_in_use() -> None:
    assert {found.kind for found in SIGNATURES} == set(Kind)
