"""The export's archive: tell its format, check its members and unpack them into one file."""

import errno
import gzip
import lzma
import os
import re
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Self, cast

from flows.splitter.errors import ExportError

Format = Literal["zip", "tar", "tar.gz"]
DosDateTime = tuple[int, int, int, int, int, int]
"""Year from 1980, month, day, hour, minute, second."""

CHUNK = 1024 * 1024

# What desktop systems add to an archive: macOS resource forks and folder views, Windows thumbnails.
NOISE_FOLDERS = ("__MACOSX",)
NOISE_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")
NOISE_PREFIX = "._"

# Control characters, and the surrogates that stand for bytes which are not UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

# What zipfile, tarfile and the decompressors raise when they read nonsense.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    RecursionError,
    ValueError,
)


class ArchiveError(ExportError):
    """An archive that cannot be read or must not be trusted; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the archive and where its bytes lie in the store that ``extract`` fills.

    Attributes:
        name: the path inside the archive, with ``/``, without a leading ``./``.
        offset, size: the bytes of its content in the store.
        crc: CRC-32 of the content.
        modified: as the archive has it; UTC where the archive says which time it means.
    """

    name: str
    offset: int
    size: int
    crc: int
    modified: DosDateTime


class Contents:
    """What an archive holds: its files, unpacked into one store, by their names.

    An ordinary class, so that Prefect hands it from task to task as it is.

    Attributes:
        format: what the archive was.
        store: the file with every member's bytes, one after the other.
        members: in the archive's order, without folders and the noise of desktop systems.
    """

    def __init__(self, format: Format, store: Path, members: list[Member]) -> None:
        self.format = format
        self.store = store
        self.members = {member.name: member for member in members}

    def read(self, name: str) -> bytes:
        """The bytes of one member."""
        member = self.members[name]
        with self.store.open("rb") as store:
            store.seek(member.offset)
            return store.read(member.size)


def identify(path: Path) -> Format:
    """Tell the archive's format by its content.

    Raises:
        ArchiveError: if it is none of ZIP, tar and gzip-compressed tar.
    """
    with path.open("rb") as file:
        start = file.read(512)
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
    archive: Path, store: Path, progress: Callable[[int], object] = lambda _: None
) -> Contents:
    """Unpack every file of the archive into ``store``, one after the other, and check it.

    One file instead of thousands: no name of the archive ever becomes a path of this machine, and
    a network file system is asked for one file, not for 20,000.

    Args:
        archive: a ZIP, tar or gzip-compressed tar.
        store: the file to write.
        progress: told the number of bytes unpacked since the last call, from any thread.

    Raises:
        ArchiveError: a damaged or truncated archive, a wrong checksum, names that lead elsewhere or
            occur twice, links and devices, encryption.
    """
    format = identify(archive)
    with store.open("wb") as output, _reading():
        if format == "zip":
            members = _extract_zip(archive, output, progress)
        else:
            members = _extract_tar(archive, format, output, progress)
    return Contents(format, store, members)


def is_noise(name: str) -> bool:
    """Whether a desktop system put the member there, not the export."""
    folders, _, file = name.rpartition("/")
    return (
        any(folder in NOISE_FOLDERS for folder in folders.split("/"))
        or file in NOISE_FILES
        or file.startswith(NOISE_PREFIX)
    )


def member_name(raw: str) -> str:
    """The member's path without a leading ``./``.

    Raises:
        ArchiveError: for a name that would lead out of a folder it is unpacked into.
    """
    name = raw
    while name.startswith("./"):
        name = name[2:]
    parts = name.split("/")
    if (
        name.startswith("/")
        or ".." in parts
        or "\\" in name
        or name[1:2] == ":"
        or UNPRINTABLE.search(name)
    ):
        raise ArchiveError(
            f"The archive holds a file with an unsafe name, {raw[:80]!r}; export it again."
        )
    return name


class _Index:
    """The members met so far, each name once."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self._names: set[str] = set()
        self.end = 0

    def add(self, name: str, size: int, crc: int, modified: DosDateTime) -> Member:
        if not name:
            raise ArchiveError("The archive holds a file without a name; export it again.")
        if name in self._names:
            raise ArchiveError(
                f"The archive holds two files named '{name[:80]}', and nothing says which one "
                "counts; export it again."
            )
        self._names.add(name)
        member = Member(name, self.end, size, crc, modified)
        self.members.append(member)
        self.end += size
        return member


def _extract_zip(
    archive: Path, output: IO[bytes], progress: Callable[[int], object]
) -> list[Member]:
    index = _Index()
    with zipfile.ZipFile(archive) as source:
        work = []
        for info in source.infolist():
            name = member_name(info.filename)
            if info.filename.endswith("/") or is_noise(name):
                continue
            if info.flag_bits & 0x1:  # APPNOTE 4.4.4, bit 0
                raise ArchiveError(
                    "The archive is encrypted; zip the export again without a password."
                )
            work.append((info, index.add(name, info.file_size, info.CRC, info.date_time)))

        def unpack(info: zipfile.ZipInfo, member: Member) -> None:
            position = member.offset
            with source.open(info) as content:  # checks the CRC when it reaches the end
                while chunk := content.read(CHUNK):
                    os.pwrite(output.fileno(), chunk, position)
                    position += len(chunk)
                    progress(len(chunk))
            if position != member.offset + member.size:
                raise ArchiveError(
                    f"The archive is damaged: '{member.name}' is shorter than it says; "
                    "export it again."
                )

        # zlib, CRC and file calls release the GIL, so threads use every core.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for _ in pool.map(unpack, *zip(*work, strict=True)) if work else ():
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return index.members


class _Header(tarfile.TarInfo):
    """A member's header; ``tarfile`` itself takes a damaged or missing one for the tar's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # zeros, as every tar ends
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _extract_tar(
    archive: Path, format: Format, output: IO[bytes], progress: Callable[[int], object]
) -> list[Member]:
    index = _Index()
    with (
        _tar_stream(archive, format) as stream,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header, encoding="utf-8") as source,
    ):
        for info in source:
            name = member_name(info.name)
            if info.isdir() or is_noise(name):
                continue
            content = source.extractfile(info) if info.isreg() else None
            if content is None:
                raise ArchiveError(
                    f"The archive holds a link or a device, '{name[:80]}', where only files "
                    "belong; pack the export again."
                )
            crc = 0
            size = 0
            while chunk := content.read(CHUNK):
                output.write(chunk)
                crc = zlib.crc32(chunk, crc)
                size += len(chunk)
                progress(len(chunk))
            index.add(name, size, crc, _dos_date_time(info.mtime))
        while stream.read(CHUNK):  # gzip's own checksum stands at its very end
            pass
    return index.members


@contextmanager
def _tar_stream(archive: Path, format: Format) -> Iterator[IO[bytes]]:
    if format == "tar":
        with archive.open("rb") as plain:
            yield plain
    else:
        with gzip.open(archive, "rb") as unzipped:
            yield cast("IO[bytes]", unzipped)


@contextmanager
def _reading() -> Iterator[None]:
    """Turn what the libraries say about a bad archive into what a project manager can act on."""
    try:
        yield
    except NotImplementedError as error:  # zipfile, for a compression method it does not have
        raise ArchiveError(
            f"The archive uses a feature that is not supported ({error}); "
            "zip the export again with ordinary compression."
        ) from error
    except DAMAGE as error:
        raise _damaged(error) from error
    except OSError as error:  # from bz2, or from a jump to where no file can have a byte
        if type(error) is not OSError or error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(error) from error


def _damaged(error: Exception) -> ArchiveError:
    what = " ".join(str(error).split()).rstrip(".")
    return ArchiveError(f"The archive is damaged or incomplete ({what}); export it again.")


def _dos_date_time(seconds: float) -> DosDateTime:
    """Seconds since 1970, UTC, in the range of a ZIP's time stamp (APPNOTE 4.4.6)."""
    moment = time.gmtime(max(0, min(seconds, 2**32)))
    if moment.tm_year < 1980:
        return (1980, 1, 1, 0, 0, 0)
    return (moment.tm_year, *moment[1:6])
