"""The formats of files: archives are read, other files are named, with advice."""

import bz2
import gzip
import io
import lzma
import tarfile

import pytest

from splitter.archives import formats
from splitter.archives.members import ArchiveError
from splitter.manifest import partition as manifest
from splitter.manifest.text import ManifestError
from tests.helpers.archives import FILES, identified, tar_of, zip_of

TAR = tar_of(FILES)
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in &amp; go on</title></head></html>"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"

READ = {
    "zip": zip_of(FILES),
    "tar": TAR,
    "tar.gz": gzip.compress(TAR),
    "tar.bz2": bz2.compress(TAR),
    "tar.xz": lzma.compress(TAR),
}

OTHERS = {
    "7-Zip": (b"7z\xbc\xaf\x27\x1c\0\4", "a 7-Zip archive"),
    "RAR": (b"Rar!\x1a\x07\x01\0", "a RAR archive"),
    "LZMA": (b"\x5d\0\0\x80\0" + b"\xff" * 8, "a file compressed by LZMA"),
    "film": (b"\0\0\0\x18ftypheic", "a HEIC image or a film"),
    "cpio": (b"070701%0104d" % 0 + b"TRAILER!!!\0", "a cpio archive"),
    "program": (b"MZ\x90\0" + bytes(60), "a Windows program"),
    "web page": (PAGE, "a web page titled 'Sign in & go on'"),
    "error of S3": (DENIED, "an XML document that says 'AccessDenied'"),
    "PDF": (b"%PDF-1.7\n", "a PDF document"),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(8), "an old Excel or Word file"),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image"),
    "text": (
        b"subjectId,imageName\n1,a.jpg\n",
        "a text file that begins with 'subjectId,imageName'",
    ),
    "zeros": (bytes(5000), "a file that begins with nothing but zeros"),
    "CD": (bytes(16 * 2048 + 1) + b"CD001" + bytes(2000), "a disk image (.iso)"),
    "disk image of macOS": (bytes(9000) + b"koly" + bytes(508), "a macOS disk image (.dmg)"),
    "XHTML": (b"<?xml version='1.0'?>\n<!-- <p> -->\n" + PAGE, "a web page titled 'Sign in"),
    "web page in UTF-16": (PAGE.decode().encode("utf-16"), "a web page titled 'Sign in"),
    "nothing": (b"", "empty"),
    "noise": (b"\x8f\x01\x02\x03" * 9, "not a ZIP or tar archive, and its format is unknown"),
}


@pytest.mark.parametrize("name", READ)
def test_an_archive_is_recognised_by_its_content(name: str) -> None:
    assert identified(READ[name]) == name


def test_a_tar_of_unix_v7_is_recognised_by_its_checksum() -> None:
    header = bytearray(tar_of({"a.jpg": b"a"}, format=tarfile.USTAR_FORMAT))
    header[257:500] = bytes(243)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    assert identified(bytes(header)) == "tar"


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_cannot_be_read_is_named(name: str) -> None:
    data, what = OTHERS[name]
    with pytest.raises(ArchiveError) as refused:
        identified(data)
    assert str(refused.value).startswith(f"The export is {what}")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["[Content_Types].xml", "_rels/.rels", "xl/workbook.xml"], "an Excel file"),
        (["docProps/app.xml", "xl/workbook.xml", "[Content_Types].xml"], "an Excel file"),
        (["word/document.xml", "[Content_Types].xml"], "a Word file"),
        (["mimetype", "content.xml", "meta.xml", "META-INF/manifest.xml"], "an OpenDocument file"),
        (["mimetype", "META-INF/container.xml", "a.xhtml"], "an e-book"),
        (["mimetype", "stack.xml"], "the document of another program"),
        (["META-INF/MANIFEST.MF", "A.class"], "a Java program"),
        (["occurrence.txt", "eml.xml", "meta.xml"], "a Darwin Core archive"),
    ],
)
def test_a_document_is_a_zip_but_no_export(names: list[str], what: str) -> None:
    assert identified(zip_of(dict.fromkeys(names, b"<xml/>"))) == "zip"
    with pytest.raises(ManifestError, match=f"The export is {what}.*; send the export instead"):
        manifest.find(names)


def test_an_export_may_hold_the_files_of_documents() -> None:
    assert manifest.find(["mimetype", "manifest.csv", "meta.xml"]) == "manifest.csv"


@pytest.mark.parametrize("name", ["7-Zip", "RAR", "cpio", "program"])
def test_another_archive_is_to_be_zipped_anew(name: str) -> None:
    with pytest.raises(ArchiveError, match="unpack it, and make an ordinary ZIP") as refused:
        identified(OTHERS[name][0])
    assert "export it again" not in str(refused.value)


@pytest.mark.parametrize(
    ("inside", "what"),
    [(READ["zip"], "a ZIP"), (PAGE, "a web page"), (b"a,b", "a text file"), (b"\x8f\1", "a file")],
)
def test_the_content_of_a_compressed_file_without_tar_is_named(inside: bytes, what: str) -> None:
    with pytest.raises(ArchiveError, match=rf"a \.gz file that holds {what}"):
        formats.check_tar(inside[: formats.BLOCK], "gz")


def test_an_empty_compressed_file_is_to_be_exported_again() -> None:
    with pytest.raises(ArchiveError, match=r"an empty \.gz file, .*export it again"):
        formats.check_tar(b"", "gz")


@pytest.mark.parametrize("name", ["zip", "tar.gz", "tar.xz"])
def test_an_archive_sent_as_text_is_recognised(name: str) -> None:
    with pytest.raises(ArchiveError, match="sent or saved it as text"):
        identified(READ[name].decode("utf-8", "replace").encode())


def test_only_the_ends_of_a_large_file_are_read() -> None:
    asked = []

    def read(start: int, length: int) -> bytes:
        asked.append(length)
        return io.BytesIO(bytes(length)).read()

    with pytest.raises(ArchiveError):
        formats.identify(read, 20 * 1024**3)
    assert sum(asked) < 1024 * 1024
