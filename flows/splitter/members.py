"""What every kind of archive has in common: the names of its files, and the ways to be damaged."""

import errno
import gzip
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from flows.splitter.errors import ExportError

DosDateTime = tuple[int, int, int, int, int, int]
"""Year from 1980, month, day, hour, minute, second."""

CHUNK = 1024 * 1024
"""Bytes of content that are held at a time."""

MAX_IN_MEMORY = 64 * 1024 * 1024
"""The largest manifest or central directory that is read as a whole: some 600,000 members."""

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


class Names:
    """The names of an archive's files: each safe, each once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def claim(self, raw: str, is_folder: bool) -> str | None:
        """The path of the member that is called ``raw``, without a leading ``./``.

        Returns:
            None for what is no part of an export: a folder, or the noise of a desktop system.

        Raises:
            ArchiveError: for a name that would lead out of a folder it is unpacked into, for none,
                and for one that another file has.
        """
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
        if name in self._taken:
            raise ArchiveError(
                f"The archive holds two files named '{name[:80]}', and nothing says which one "
                "counts; export it again."
            )
        self._taken.add(name)
        return name


def check_in_memory(name: str, size: int) -> None:
    """Refuse to read a member of ``size`` bytes as a whole if that is too much.

    Raises:
        ArchiveError: above 64 MiB.
    """
    if size > MAX_IN_MEMORY:
        raise ArchiveError(
            f"The archive's '{name[:80]}' is far too large ({size:,} bytes); export it again."
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
