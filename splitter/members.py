"""What every kind of archive has in common: the names of its files, and the ways to be damaged."""

import errno
import gzip
import lzma
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from splitter.errors import ExportError

DosDateTime = tuple[int, int, int, int, int, int]
"""Year from 1980, month, day, hour, minute, second."""

CHUNK = 1024 * 1024
"""Bytes of content that are held at a time."""

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


@dataclass(frozen=True)
class Limits:
    """What an export may be. More is taken for damage or harm; each limit is a setting.

    Attributes:
        max_expansion: how many times its own size an archive may unpack to; 64 MiB in any case.
        max_members: entries of an archive, folders and noise included.
        max_name_bytes: of a member's name in UTF-8. No common file system takes a longer one.
        max_in_memory: bytes of the manifest, and of a ZIP's central directory.
        max_cells: of the manifest.
    """

    max_expansion: int = 20
    max_members: int = 1_000_000
    max_name_bytes: int = 255
    max_in_memory: int = 64 * 1024 * 1024
    max_cells: int = 10_000_000


DEFAULT_LIMITS = Limits()


class Names:
    """The names of an archive's files: each safe, each once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._count = 0
        self._taken: dict[str, str] = {}

    def claim(self, raw: str, is_folder: bool) -> str | None:
        """The path of the member that is called ``raw``, without a leading ``./``.

        Returns:
            None for what is no part of an export: a folder, or the noise of a desktop system.

        Raises:
            ArchiveError: for a name that would lead out of a folder it is unpacked into, for none,
                for one that another file has, letters' case aside, and for too many or too long.
        """
        self._count += 1
        check_count(self._count, self._limits)
        name = raw
        while name.startswith("./"):
            name = name[2:]
        if is_folder or is_noise(name):
            return None
        if (
            name.startswith("/")
            or ".." in name.split("/")
            or "\\" in name
            or name[1:2] == ":"
            or UNPRINTABLE.search(name)
        ):
            raise ArchiveError(
                f"The archive holds a file with an unsafe name, {raw[:80]!r}; export it again."
            )
        if not name:
            raise ArchiveError("The archive holds a file without a name; export it again.")
        length = len(name.encode())
        if length > self._limits.max_name_bytes:
            raise ArchiveError(
                f"The archive holds a file with a name of {length:,} bytes, '{name[:80]}…', where "
                f"{self._limits.max_name_bytes:,} are allowed (MAX_NAME_BYTES); export it again."
            )
        # As Windows and macOS compare names: one of the two files would replace the other there.
        folded = unicodedata.normalize("NFC", name).casefold()
        other = self._taken.get(folded)
        if other == name:
            raise ArchiveError(
                f"The archive holds two files named '{name[:80]}', and nothing says which one "
                "counts; export it again."
            )
        if other is not None:
            raise ArchiveError(
                f"The archive holds two files that many systems take for one, '{other[:80]}' and "
                f"'{name[:80]}'; rename one of them in the archive and in its manifest."
            )
        self._taken[folded] = name
        return name


def check_count(count: int, limits: Limits) -> None:
    """Refuse an archive of ``count`` members if that is too many.

    Raises:
        ArchiveError: above MAX_MEMBERS.
    """
    if count > limits.max_members:
        raise ArchiveError(
            f"The archive holds more than {limits.max_members:,} files, which no export of images "
            "does (MAX_MEMBERS); export it again."
        )


def check_in_memory(what: str, size: int, limits: Limits) -> None:
    """Refuse to read ``size`` bytes of an archive as a whole if that is too much.

    Raises:
        ArchiveError: above MAX_IN_MEMORY.
    """
    if size > limits.max_in_memory:
        raise ArchiveError(
            f"The archive's {what} is far too large, {size:,} bytes where "
            f"{limits.max_in_memory:,} are allowed (MAX_IN_MEMORY); export it again."
        )


def is_noise(name: str) -> bool:
    """Whether a desktop system put the member there, not the export."""
    folders, _, file = name.rpartition("/")
    return (
        any(folder in NOISE_FOLDERS for folder in folders.split("/"))
        or file in NOISE_FILES
        or file.startswith(NOISE_PREFIX)
    )


@contextmanager
def reading() -> Iterator[None]:
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
