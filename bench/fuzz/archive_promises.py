"""The checks of archives."""

import io
import os
import tarfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Self

from bench.fuzz.mutations import UNREADABLE, BrokenPromiseError, unless_refused
from bench.fuzz.streams import whole_file
from splitter.archives import extract as archive
from splitter.archives import formats
from splitter.archives.extract import Contents
from splitter.archives.members import ALWAYS_ALLOWED, UNPRINTABLE, is_noise, plain
from splitter.archives.spliceable import copyable
from splitter.archives.tar import without_unused
from splitter.archives.zip_index import ZipIndex
from splitter.batches import splice as splicing
from splitter.errors import ExportError
from splitter.manifest import MANIFEST
from splitter.manifest import partition as manifest
from tests.helpers.archives import identified, index_of


def check_archive(data: bytes, directory: Path) -> bool:
    """Whether one of the readers accepts the archive."""
    contents = _extracted(data, directory)
    format = unless_refused(lambda: identified(data))
    index = None
    if format == "zip":
        index = unless_refused(lambda: index_of(data))
        if contents and not index:
            raise BrokenPromiseError("extract accepts what ZipIndex refuses")
    elif format:
        _compare_tar(contents, format, data, directory)
    if contents and index:
        _compare_zip(contents, index, data)
    for files in filter(None, (contents, index)):
        with suppress(ExportError):
            _partition(files, index, data, contents)
    return bool(contents or index)


def _extracted(data: bytes, directory: Path) -> Contents | None:
    path, store = directory / "archive", directory / "store"
    path.write_bytes(data)
    store.unlink(missing_ok=True)
    contents: Contents | None = unless_refused(lambda: archive.extract(path, store))
    if {entry.name for entry in directory.iterdir()} - {"archive", "store"}:
        raise BrokenPromiseError("something was written beside the store")
    return contents


def _content(contents: Contents, name: str) -> bytes:
    member = contents.members[name]
    with contents.store.open("rb") as store:
        return os.pread(store.fileno(), member.size, member.offset)


def _compare_zip(contents: Contents, index: ZipIndex, data: bytes) -> None:
    """Compare the files with their CRCs and with ``zipfile``, which reads fewer archives."""
    if list(contents.members) != list(index.members):
        raise BrokenPromiseError("extract and ZipIndex name other members")
    theirs: dict[int, bytes] = {}
    with (
        # zipfile refuses the whole archive if one entry needs a later version.
        suppress(*UNREADABLE, NotImplementedError),
        zipfile.ZipFile(io.BytesIO(data)) as zip_,
    ):
        for info in zip_.infolist():
            with suppress(Exception):  # a method, name or flag that zipfile does not support
                theirs[info.header_offset] = zip_.read(info)
    for name, span in index.members.items():
        content = _content(contents, name)
        if b"".join(index.chunks(name)) != content:
            raise BrokenPromiseError("extract and ZipIndex read another content")
        if theirs.get(span.start, content) != content:
            raise BrokenPromiseError("extract and the standard library read another content")
        if not contents.members[name].crc == span.info.CRC == zlib.crc32(content):
            raise BrokenPromiseError("a member's CRC is not that of its content")


def _compare_tar(
    contents: Contents | None, format: formats.Format, data: bytes, directory: Path
) -> None:
    """Compare the unpacked files with ``tarfile``'s."""
    if compression := format.partition(".")[2]:
        try:
            data = whole_file(compression, data, 2 * ALWAYS_ALLOWED)
        except UNREADABLE:
            return  # isal accepts some streams with all content and correct checksums
    if contents:
        file = io.BytesIO(data)
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", tarinfo=_Info) as tar:
            _compare_members(contents, _by_tarfile(tar))
    elif (
        compression
        and len(data) < ALWAYS_ALLOWED
        and unless_refused(lambda: identified(data)) == "tar"
        and _extracted(data, directory)
    ):
        raise BrokenPromiseError("a tar is refused only if it is compressed")


class _Info(tarfile.TarInfo):
    """Corrects ``tarfile``, which reads times in GNU's headers as the start of a POSIX name, and a
    header with odd owner or device numbers as the end of a tar."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if not formats.is_tar(bytes(buf)):
                raise
            info = super().frombuf(without_unused(buf), encoding, errors)
        if buf[257:265] == b"ustar  \0" and info.type not in tarfile.GNU_TYPES:
            before = bytes(buf[345:500]).split(b"\0")[0].decode(encoding, errors)
            info.name = info.name[len(before) + 1 :] if before else info.name
        return info


def _by_tarfile(tar: tarfile.TarFile) -> dict[str, bytes]:
    """Files and hard links by their plain names."""
    files: dict[str, bytes] = {}
    for entry in tar:
        name = plain(entry.name)
        if name.endswith("/") or is_noise(name):
            continue
        if entry.islnk() and plain(entry.linkname) in files:
            files[name] = files[plain(entry.linkname)]
        elif entry.isfile() and (file := tar.extractfile(entry)):
            files[name] = file.read()
    return files


def _compare_members(contents: Contents, theirs: dict[str, bytes]) -> None:
    for name in contents.unusable:
        theirs.pop(name, None)
    # Unprintable names are escaped in unusable.
    theirs = {name: data for name, data in theirs.items() if not UNPRINTABLE.search(name)}
    if theirs.keys() != contents.members.keys():
        raise BrokenPromiseError("extract and the standard library name other members")
    for name, data in theirs.items():
        if _content(contents, name) != data:
            raise BrokenPromiseError("extract and the standard library read another content")
        if contents.members[name].crc != zlib.crc32(data):
            raise BrokenPromiseError("a member's CRC is not that of its content")


def _partition(
    files: Contents | ZipIndex, index: ZipIndex | None, data: bytes, contents: Contents | None
) -> None:
    parts = manifest.partition_export(
        files.members, files.read, "imageName", 2, unusable=files.unusable
    )
    if (
        files is index
        and all(file == name for name, file in parts.images.items())
        and copyable(index, parts.folder)[0]
    ):
        for batch in parts.batches:
            _splice(batch, index, data, contents)


def _splice(batch: manifest.Batch, index: ZipIndex, data: bytes, contents: Contents | None) -> None:
    limits = splicing.PartLimits(min_part_size=200, max_copy_size=2000, max_parts=40)
    plan = splicing.plan_batch(batch, index.members, (2026, 11, 24, 0, 0, 0), limits)
    spliced = b""
    for part in plan.parts:
        ranges = part.ranges if isinstance(part, splicing.Uploaded) else [part]
        for found in ranges:
            if not 0 <= found.start < found.end <= len(data):
                raise BrokenPromiseError("a plan has a range outside the archive")
            spliced += data[found.start : found.end]
        spliced += part.end if isinstance(part, splicing.Uploaded) else b""
    if len(spliced) != plan.size:
        raise BrokenPromiseError("a plan has another size than its parts")
    if contents is None:
        return  # the splice lane does not read images, so it may accept damaged ones
    with zipfile.ZipFile(io.BytesIO(spliced)) as made:
        if sorted(made.namelist()) != sorted([*batch.images, MANIFEST]):
            raise BrokenPromiseError("a spliced batch has other members than its rows")
        for name in batch.images:
            if made.read(name) != _content(contents, name):
                raise BrokenPromiseError("a spliced batch has another image than the archive")
