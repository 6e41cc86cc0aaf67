"""The export's archive: tell its format, and unpack it, checked, into one file."""

import gzip
import os
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Literal, Self, cast

from splitter.members import (
    CHUNK,
    DEFAULT_LIMITS,
    DEVICE,
    LINK,
    ArchiveError,
    DosDateTime,
    Limits,
    Names,
    check_in_memory,
    reading,
)
from splitter.zip_index import ZipIndex

Format = Literal["zip", "tar", "tar.gz"]

ALWAYS_ALLOWED = 64 * 1024 * 1024
LONGEST_EXTENSION_HEADER = 64 * 1024
"""Bytes of a tar's member that only speaks of the next one: its long name, its PAX attributes."""

EXTENSION_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

MAGIC_LENGTH = 512
"""Bytes from the start of an archive that tell its format."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the archive and where its bytes lie in the store that ``extract`` fills.

    Attributes:
        offset, size: the bytes of its content in the store.
        crc: CRC-32 of the content.
        modified: as the archive has it; UTC where the archive says which time it means.
    """

    offset: int
    size: int
    crc: int
    modified: DosDateTime


class Contents:
    """What an archive holds: its files, unpacked into one store, by their names.

    An ordinary class, so that Prefect hands it from task to task as it is.

    Attributes:
        store: the file with every member's bytes, one after the other.
        members: without folders and the noise of desktop systems.
        unusable: files that no batch may hold, and why, as ``members.Names`` has them.
    """

    def __init__(
        self,
        store: Path,
        members: dict[str, Member],
        limits: Limits = DEFAULT_LIMITS,
        unusable: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.store = store
        self.members = members
        self.unusable = dict(unusable)
        self._limits = limits

    def read(self, name: str) -> bytes:
        """The bytes of one member.

        Raises:
            ArchiveError: if they are too many.
        """
        member = self.members[name]
        check_in_memory(f"'{name[:80]}'", member.size, self._limits)
        with self.store.open("rb") as store:
            return os.pread(store.fileno(), member.size, member.offset)


def identify(start: bytes) -> Format:
    """Tell an archive's format by its content.

    Args:
        start: its first ``MAGIC_LENGTH`` bytes, or all there are.

    Raises:
        ArchiveError: if it is none of ZIP, tar and gzip-compressed tar.
    """
    if start.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08")):  # APPNOTE 4.3.7, 4.3.16, 8.5.4
        return "zip"
    if start.startswith(b"\x1f\x8b"):  # RFC 1952, section 2.3.1
        return "tar.gz"
    if start[257:262] == b"ustar":  # POSIX.1-1988 and GNU tar
        return "tar"
    what = "is empty" if not start else f"begins with the bytes {start[:4].hex(' ')}"
    raise ArchiveError(
        f"The export is not a ZIP, .tar.gz or .tar archive: it {what}; export it again."
    )


def extract(
    archive: Path,
    store: Path,
    progress: Callable[[int], object] = lambda _: None,
    limits: Limits = DEFAULT_LIMITS,
) -> Contents:
    """Unpack every file of the archive into ``store``, one after the other, and check it.

    One file instead of thousands: no name of the archive ever becomes a path of this machine, and
    a network file system is asked for one file, not for 20,000.

    Args:
        archive: a ZIP, tar or gzip-compressed tar.
        store: the file to write.
        progress: told the number of bytes unpacked since the last call, from any thread.
        limits: that the archive has to keep to.

    Raises:
        ArchiveError: a damaged or truncated archive, a wrong checksum, more than the limits allow.
    """
    names = Names(limits)
    max_size = max(ALWAYS_ALLOWED, limits.max_expansion * archive.stat().st_size)
    with archive.open("rb") as source, store.open("wb") as output:
        format = identify(source.read(MAGIC_LENGTH))
        source.seek(0)
        if format == "zip":
            members = _extract_zip(source, output, progress, names, limits, max_size)
        else:
            members = _extract_tar(source, format, output, progress, names, max_size)
    return Contents(store, names.usable(members), limits, names.unusable)


def _extract_zip(
    archive: IO[bytes],
    output: IO[bytes],
    progress: Callable[[int], object],
    names: Names,
    limits: Limits,
    max_size: int,
) -> dict[str, Member]:
    index = ZipIndex(archive, limits, names)
    if sum(span.info.file_size for span in index.members.values()) > max_size:
        raise _too_much(max_size)
    members: dict[str, Member] = {}
    end = 0
    for name, span in index.members.items():
        info = span.info
        members[name] = Member(end, info.file_size, info.CRC, info.date_time)
        end += info.file_size

    def unpack(name: str) -> None:
        position = members[name].offset
        for chunk in index.chunks(name):
            os.pwrite(output.fileno(), chunk, position)
            position += len(chunk)
            progress(len(chunk))

    # zlib, CRC and file calls release the GIL, so threads use every core.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in pool.map(unpack, members):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return members


class _Header(tarfile.TarInfo):
    """A member's header; ``tarfile`` itself takes a damaged or missing one for the tar's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        # tarfile would hold such a member in memory, whatever its size.
        if header.type in EXTENSION_HEADERS and header.size > LONGEST_EXTENSION_HEADER:
            raise tarfile.ReadError(f"{header.size:,} bytes of attributes for one file")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # zeros, as every tar ends
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _extract_tar(
    archive: IO[bytes],
    format: Format,
    output: IO[bytes],
    progress: Callable[[int], object],
    names: Names,
    max_size: int,
) -> dict[str, Member]:
    members: dict[str, Member] = {}
    end = 0
    with (
        reading(),
        _uncompressed(archive, format, max_size) as stream,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header, encoding="utf-8") as source,
    ):
        for info in source:
            # A sparse file takes no room in the archive. And tarfile goes on to the next header in
            # small steps, however far behind the archive's end it is said to be.
            if max(end + info.size, source.offset) > max_size:
                raise _too_much(max_size)
            odd = None if info.isreg() else LINK if info.issym() or info.islnk() else DEVICE
            name = names.claim(info.name, info.isdir(), odd)
            content = source.extractfile(info) if name and not odd else None
            if name is None or content is None:
                continue
            crc = size = 0
            while chunk := content.read(CHUNK):
                output.write(chunk)
                crc = zlib.crc32(chunk, crc)
                size += len(chunk)
                progress(len(chunk))
            members[name] = Member(end, size, crc, _dos_date_time(info.mtime))
            end += size
        while stream.read(CHUNK):  # gzip's own checksum stands at its very end
            pass
    return members


@contextmanager
def _uncompressed(archive: IO[bytes], format: Format, max_size: int) -> Iterator[IO[bytes]]:
    if format == "tar":
        yield archive
    else:
        with _BoundedGzip(archive, max_size) as unzipped:
            yield cast("IO[bytes]", unzipped)


class _BoundedGzip(gzip.GzipFile):
    """A gzip stream that ends in an error where it unpacks to too much, wherever that stands."""

    def __init__(self, archive: IO[bytes], max_size: int) -> None:
        super().__init__(fileobj=archive, mode="rb")
        self._max_size = max_size

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.tell() > self._max_size:
            raise _too_much(self._max_size)
        return data


def _too_much(max_size: int) -> ArchiveError:
    return ArchiveError(
        f"The archive unpacks to more than {max_size:,} bytes, which no export of images does "
        "(MAX_EXPANSION); export it again."
    )


def _dos_date_time(seconds: float) -> DosDateTime:
    """Seconds since 1970, UTC, in the range of a ZIP's time stamp (APPNOTE 4.4.6)."""
    moment = time.gmtime(max(0, min(seconds, 2**32)))
    if moment.tm_year < 1980:
        return (1980, 1, 1, 0, 0, 0)
    return (moment.tm_year, *moment[1:6])
