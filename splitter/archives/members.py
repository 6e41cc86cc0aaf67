"""What every kind of archive has in common: the names of its files, and the ways to be damaged."""

import errno
import gzip
import lzma
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

from isal.isal_zlib import IsalError

from splitter.archives.zstandard import zstd
from splitter.errors import ExportError
from splitter.sentences import Sentence

T = TypeVar("T")

DosDateTime = tuple[int, int, int, int, int, int]
"""Year from 1980, month, day, hour, minute, second."""

CHUNK = 1024 * 1024
"""Bytes of content that are held at a time."""

# What desktop systems add to an archive: macOS resource forks and folder views, Windows thumbnails.
NOISE_FOLDERS = ("__MACOSX",)
NOISE_FILES = (".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r")
NOISE_PREFIX = "._"

# Control characters, and the surrogates that stand for bytes which are not UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

# What zipfile, tarfile and the decompressors raise when they read nonsense.
DAMAGE: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    RecursionError,
    ValueError,
    cast("type[Exception]", IsalError),  # an instance, if its stubs were right
    zstd.ZstdError,
)


class ArchiveError(ExportError):
    """An archive that cannot be read or must not be trusted; the message says what is wrong."""


@dataclass(frozen=True)
class Limits:
    """What an export may be; only damaged and hostile ones are more. Each limit is a setting.

    Attributes:
        max_expansion: how many times its own size an archive may unpack to; 64 MiB in any case.
        max_members: entries of an archive, folders and noise included.
        max_name_bytes: of a member's name in UTF-8. No common file system takes a longer one.
        max_in_memory: bytes of the manifest, and of a ZIP's central directory.
        max_cells: of the manifest.
        max_columns: of the manifest.
    """

    max_expansion: int = 20
    max_members: int = 1_000_000
    max_name_bytes: int = 255
    max_in_memory: int = 64 * 1024 * 1024
    max_cells: int = 10_000_000
    max_columns: int = 1_000


DEFAULT_LIMITS = Limits()

ALWAYS_ALLOWED = 64 * 1024 * 1024
"""Bytes that any archive may unpack to, however small it is."""

TOO_MUCH = Sentence(
    "archive.unpacks-to-too-much",
    "The archive unpacks to more than {size} bytes, which no export of images does (the setting "
    "MAX_EXPANSION); export it again.",
)


LINK = "is a link (an alias) to another file, not the file itself; pack the files themselves"
FILE_AND_FOLDER = (
    "cannot be unpacked, because one name in the archive is a file and a folder; rename the one or "
    "the other, in the manifest too"
)
DEVICE = "is a device or a pipe, not a file; pack the export again"


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the archive and where its bytes lie in the store that ``archive.extract`` fills.

    Attributes:
        offset, size: the bytes of its content in the store.
        crc: CRC-32 of the content.
        modified: as the archive has it; UTC where the archive says which time it means.
    """

    offset: int
    size: int
    crc: int
    modified: DosDateTime


class Names:
    """The names of an archive's files; of those that no batch may hold, why not.

    What is odd about a file matters only if the manifest names it. So it is noted here, and judged
    by ``manifest.partition_export``.

    Attributes:
        unusable: by name, what is wrong with the file and what to do, as it follows "which".
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._count = 0
        self._taken: dict[str, str] = {}
        self._folders: dict[str, str] = {}  # and a file in each
        self.unusable: dict[str, str] = {}

    def claim(self, raw: str, is_folder: bool, why_not: str | None = None) -> str | None:
        """The path of the member that is called ``raw``, as ``plain`` has it.

        Args:
            why_not: why no batch may hold the member, if the archive's format tells; ``LINK``.

        Returns:
            None for what is no part of an export (a folder, or the noise of a desktop system), and
            for what is unusable. Of two members with one name the second makes the first unusable
            too: see ``usable``.

        Raises:
            ArchiveError: for too many.
        """
        self._count += 1
        check_count(self._count, self._limits)
        name = plain(raw)
        if is_folder or name.endswith("/") or is_noise(name):
            return None
        if (too_long := _too_long(name, self._limits)) and not why_not:
            # To compose and to fold a long name can take minutes, and no batch may hold it.
            self.unusable[UNPRINTABLE.sub(_escaped, name)] = too_long
            return None
        if too_long:
            return None
        why_not = why_not or _unsafe(name, self._limits)
        if why_not:
            name = UNPRINTABLE.sub(_escaped, name)
            self.unusable[name] = why_not
        # As Windows and macOS compare names: one of the two files would replace the other there.
        folded = unicodedata.normalize("NFC", name).casefold()
        other = self._taken.get(folded)
        self._taken[folded] = name
        if other == name:
            self.unusable[name] = (
                "is in the archive twice, and nothing says which one counts; remove one of the two"
            )
        elif other is not None:
            self.unusable[name] = (
                f"many systems take for another file of the archive, '{other[:80]}'; rename one of "
                "the two, in the manifest too"
            )
        self._check_folders(folded, name)
        return None if name in self.unusable else name

    def _check_folders(self, folded: str, name: str) -> None:
        """Make a file and what stands in a folder of its name unusable."""
        if folded in self._folders:
            self.unusable[name] = self.unusable[self._folders[folded]] = FILE_AND_FOLDER
        folder = folded.rpartition("/")[0]
        while folder:
            if folder in self._taken:
                self.unusable[name] = self.unusable[self._taken[folder]] = FILE_AND_FOLDER
            elif folder in self._folders:
                break
            self._folders[folder] = name
            folder = folder.rpartition("/")[0]

    def usable(self, members: Mapping[str, T]) -> dict[str, T]:
        """``members`` without those that a later one has made unusable."""
        return {name: member for name, member in members.items() if name not in self.unusable}


def plain(raw: str) -> str:
    """A member's path as every system means it.

    Programs of Windows write ``\\`` between folders, others ``//`` or ``/./``.
    """
    name = raw.replace("\\", "/")
    if "//" in name or "./" in name or name.endswith("/.") or name == ".":
        root = "/" if name.startswith("/") else ""
        end = "/" if name.endswith(("/", "/.")) else ""
        steps = [step for step in name.split("/") if step not in ("", ".")]
        name = root + "/".join(steps) + (end if steps else "")
    return name


def _unsafe(name: str, limits: Limits) -> str | None:
    """Why a file must not be called so: the name leads elsewhere, is none, or is too long."""
    if not name:
        return "has no name; pack the export again"
    if (
        name.startswith("/")
        or ".." in name.split("/")
        or name[1:2] == ":"
        or UNPRINTABLE.search(name)
    ):
        return f"has an unsafe name, {name[:80]!r}; rename it, in the manifest too"
    return _too_long(name, limits)


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def _too_long(name: str, limits: Limits) -> str | None:
    length = len(name.encode(errors="surrogatepass"))
    if length > limits.max_name_bytes:
        return (
            f"has a name of {length:,} bytes where {limits.max_name_bytes:,} are allowed; "
            "give it a shorter one, in the manifest too"
        )
    return None


def check_count(count: int, limits: Limits) -> None:
    """Refuse an archive of ``count`` members if that is too many.

    Raises:
        ArchiveError: above MAX_MEMBERS.
    """
    if count > limits.max_members:
        raise ArchiveError(
            f"The archive holds more than {limits.max_members:,} files, which no export of images "
            "does; export it again."
        )


def check_in_memory(what: str, size: int, limits: Limits) -> None:
    """Refuse to read ``size`` bytes of an archive as a whole if that is too much.

    Raises:
        ArchiveError: above MAX_IN_MEMORY.
    """
    if size > limits.max_in_memory:
        raise ArchiveError(
            f"The archive's {what} is far too large, {size:,} bytes where "
            f"{limits.max_in_memory:,} are allowed; export it again."
        )


def too_much(max_size: int) -> ArchiveError:
    """What to say of an archive that unpacks to more than ``max_size`` bytes."""
    return ArchiveError(TOO_MUCH, size=max_size)


def most_unpacked(size: int, limits: Limits) -> int:
    """Bytes that an archive of ``size`` bytes may unpack to."""
    return max(ALWAYS_ALLOWED, limits.max_expansion * size)


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
    except DAMAGE as error:
        raise _damaged(error) from error
    except OSError as error:  # from bz2, or from a jump to where no file can have a byte
        if type(error) is not OSError or error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(error) from error


def _damaged(error: Exception) -> ArchiveError:
    said = cause(str(error))
    if re.search("memory", said, re.IGNORECASE):  # of lzma and zstd, which have no code for it
        return ArchiveError(
            f"The archive was compressed so strongly that it cannot be unpacked here ({said}); "
            "unpack it, and make an ordinary ZIP of what it holds."
        )
    return ArchiveError(f"The archive is damaged or incomplete ({said}); export it again.")


def cause(text: str) -> str:
    """What a library says, for the middle of a sentence: without its error number and full stop."""
    return re.sub(r"^Error -?\d+ ?", "", " ".join(text.split())).rstrip(".")
