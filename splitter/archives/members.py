"""Checks the names and the limits of an archive's members, for every format.

An unusable file is recorded here. It matters only if the manifest names it.
"""

import re
import unicodedata
from dataclasses import dataclass

from splitter.errors import ExportError
from splitter.sentences import Actor, Problem, Sentence

DosDateTime = tuple[int, int, int, int, int, int]
"""Year from 1980, month, day, hour, minute, second."""

CHUNK = 1024 * 1024
"""Bytes of content in memory at a time."""

NOISE = (".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r")
"""Folder views, thumbnails and icons."""

# Control characters, and surrogates in place of bytes that are not UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class ArchiveError(ExportError):
    """An archive that cannot be read or trusted."""


@dataclass(frozen=True)
class Limits:
    """The limits of an export. Only damaged and hostile exports exceed them. Each is a setting.

    Attributes:
        max_expansion: unpacked size as a multiple of the archive's size; 64 MiB are always allowed.
        max_members: entries, including folders and noise.
        max_name_bytes: bytes of a name in UTF-8. Common file systems allow no longer name.
        max_in_memory: bytes of the manifest, and bytes of a ZIP's central directory.
        max_cells: cells of the manifest.
        max_columns: columns of the manifest.
    """

    max_expansion: int = 20
    max_members: int = 1_000_000
    max_name_bytes: int = 255
    max_in_memory: int = 64 * 1024 * 1024
    max_cells: int = 10_000_000
    max_columns: int = 1_000


DEFAULT_LIMITS = Limits()

ALWAYS_ALLOWED = 64 * 1024 * 1024
"""Bytes that an archive of any size may unpack to."""

LARGER_EXPORT = (
    "If the export is really so large, raise the setting that the sentence names, then press "
    "Retry. Else send the sentence to whoever made the export."
)

TOO_MUCH = Sentence(
    "archive.unpacks-to-too-much",
    "The archive unpacks to more than {size} bytes, which no export of images does (the setting "
    "MAX_EXPANSION); export it again.",
    advice=LARGER_EXPORT,
)
TOO_MANY = Sentence(
    "archive.too-many-files",
    "The archive holds more than {limit} files, which no export of images does (the setting "
    "MAX_MEMBERS); export it again.",
    advice=LARGER_EXPORT,
)
TOO_LARGE = Sentence(
    "archive.file-too-large-to-read",
    "The archive's {name} is far too large, {size} bytes where {limit} are allowed (the setting "
    "MAX_IN_MEMORY); export it again.",
    advice=LARGER_EXPORT,
)
BYTES_BEHIND = Sentence(
    "archive.bytes-behind",
    "The archive is followed by {size:byte|bytes}; a transfer may have added that.",
    Actor.NOBODY,
)

TWO_ARCHIVES = Sentence(
    "archive.two-archives",
    "The archive is two {kind}, one after the other, and most programs read only the {which}; "
    "unpack both and make one ordinary ZIP of their content.",
)
ONE_VOLUME = Sentence(
    "archive.one-volume",
    "The archive is one volume of several: the other parts (.z01, .zip.001 and so on) are missing; "
    "pack the export again as a single file.",
)

# Reasons why a file is unusable. The manifest's sentence puts "which" in front.
LINK = Sentence(
    "file.is-a-link",
    "is a link (an alias) to another file, not the file itself; pack the files themselves",
)
DEVICE = Sentence("file.is-a-device", "is a device or a pipe, not a file; pack the export again")
FILE_AND_FOLDER = Sentence(
    "file.is-also-a-folder",
    "cannot be unpacked, because one name in the archive is a file and a folder; rename one of the "
    "two, in the manifest too",
)
TWICE = Sentence(
    "file.in-the-archive-twice",
    "is in the archive twice, so that it is not certain which one counts; remove one of the two",
)
ALIKE = Sentence(
    "file.named-like-another",
    "many systems take for another file of the archive, {other}; rename one of the two, in the "
    "manifest too",
)
NAMELESS = Sentence("file.without-a-name", "has no name; pack the export again")
UNSAFE = Sentence("file.unsafe-name", "has an unsafe name, {name}; rename it, in the manifest too")
LONG_NAME = Sentence(
    "file.name-too-long",
    "has a name of {length} bytes where {limit} are allowed; give it a shorter one, in the "
    "manifest too",
)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the store that ``extract`` fills.

    Attributes:
        offset, size: position and bytes of the content in the store.
        crc: CRC-32 of the content.
        modified: the archive's time stamp; in UTC if the archive has a time zone.
    """

    offset: int
    size: int
    crc: int
    modified: DosDateTime

    @property
    def end(self) -> int:
        return self.offset + self.size


class Names:
    """Collects the names of an archive's files and the reasons why some files are unusable.

    Attributes:
        unusable: the reason and the remedy by name, for a sentence with "which" in front.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._count = 0
        self._taken: dict[str, str] = {}
        self._folders: dict[str, str] = {}  # with one file of each
        self.unusable: dict[str, Problem] = {}

    def claim(self, raw: str, is_folder: bool, why_not: Problem | None = None) -> str | None:
        """Record a member and return its path.

        Args:
            raw: the name in the archive.
            why_not: the reason, if the member's header makes it unusable.

        Returns:
            The path in the form of ``plain``; None for folders, noise and unusable files. A second
            member of the same name makes the first one unusable too.

        Raises:
            ArchiveError: above ``max_members`` members.
        """
        self._count += 1
        check_count(self._count, self._limits)
        name = plain(raw)
        if is_folder or name.endswith("/") or is_noise(name):
            return None
        length, limit = len(name.encode(errors="surrogatepass")), self._limits.max_name_bytes
        if length > limit:  # normalising a long name can take minutes
            if not why_not:
                self.unusable[_printable(name)] = LONG_NAME(length=length, limit=limit)
            return None
        why_not = why_not or _unsafe(name)
        if why_not:
            name = _printable(name)
            self.unusable[name] = why_not
        # Windows and macOS compare names like this: one file would overwrite the other there.
        folded = unicodedata.normalize("NFC", name).casefold()
        other = self._taken.get(folded)
        self._taken[folded] = name
        if other == name:
            self.unusable[name] = TWICE()
        elif other is not None:
            self.unusable[name] = ALIKE(other=other)
        self._check_folders(folded, name)
        return None if name in self.unusable else name

    def _check_folders(self, folded: str, name: str) -> None:
        """Make files unusable if a file and a folder have the same name."""
        if folded in self._folders:
            self.unusable[name] = self.unusable[self._folders[folded]] = FILE_AND_FOLDER()
        folder = folded.rpartition("/")[0]
        while folder:
            if folder in self._taken:
                self.unusable[name] = self.unusable[self._taken[folder]] = FILE_AND_FOLDER()
            elif folder in self._folders:
                break
            self._folders[folder] = name
            folder = folder.rpartition("/")[0]


def plain(raw: str) -> str:
    """A member's path with single slashes between folders and none in front.

    Windows programs write ``\\``, others ``//`` or ``/./``. Unpacking programs drop a first slash.
    """
    name = raw.replace("\\", "/")
    if name.startswith("/") or "//" in name or "./" in name or name.endswith("/.") or name == ".":
        end = "/" if name.endswith(("/", "/.")) else ""
        steps = [step for step in name.split("/") if step not in ("", ".")]
        name = "/".join(steps) + (end if steps else "")
    return name


def _unsafe(name: str) -> Problem | None:
    """The reason why a name is not allowed: it is empty or leads out of its folder."""
    if not name:
        return NAMELESS()
    if ".." in name.split("/") or name[1:2] == ":" or UNPRINTABLE.search(name):
        return UNSAFE(name=name)
    return None


def _printable(name: str) -> str:
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], name)


def check_count(count: int, limits: Limits) -> None:
    """Raise ``ArchiveError`` above ``max_members`` members."""
    if count > limits.max_members:
        raise ArchiveError(TOO_MANY, limit=limits.max_members)


def check_in_memory(name: str, size: int, limits: Limits) -> None:
    """Raise ``ArchiveError`` for a member above ``max_in_memory`` bytes."""
    if size > limits.max_in_memory:
        raise ArchiveError(TOO_LARGE, name=name, size=size, limit=limits.max_in_memory)


def most_unpacked(size: int, limits: Limits) -> int:
    """Bytes that an archive of ``size`` bytes may unpack to."""
    return max(ALWAYS_ALLOWED, limits.max_expansion * size)


def is_noise(name: str) -> bool:
    """Whether macOS or Windows added the member."""
    *folders, file = name.split("/")
    return "__MACOSX" in folders or file in NOISE or file.startswith("._")
