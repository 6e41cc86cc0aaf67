"""Where the members of a ZIP stand, read from its end: on disk, or in S3 by ranged requests.

Section numbers are those of PKWARE's APPNOTE, as in ``zip_records``.
"""

import io
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from splitter.members import (
    CHUNK,
    DEFAULT_LIMITS,
    DEVICE,
    LINK,
    ArchiveError,
    Limits,
    Names,
    check_count,
    check_in_memory,
    reading,
)
from splitter.zip_records import (
    END_OF_CENTRAL_DIRECTORY,
    LOCAL_FILE_HEADER,
    MAX_16,
    ZIP64_END_OF_CENTRAL_DIRECTORY,
    ZIP64_END_OF_CENTRAL_DIRECTORY_LOCATOR,
    encoded_name,
)

Read = Callable[[int, int], bytes]
"""Gives so many bytes of the archive: ``read(start, length)``."""

TAIL = 128 * 1024
"""Bytes read from the end at once; the end records and the longest comment take 65,633."""

READ_AHEAD = 256 * 1024

UNIX_LIKE = (3, 19)  # 4.4.2.2: Unix, OS X

ENCRYPTED = 0x1  # 4.4.4, bit 0
LONGEST_EXTRA_FIELD = MAX_16  # 4.4.11
LONGEST_DATA_DESCRIPTOR = 24  # 4.3.9: signature, CRC-32 and two sizes of eight bytes


@dataclass(frozen=True, slots=True)
class MemberSpan:
    """One file of the archive and where it stands there.

    Attributes:
        info: its entry in the central directory, ``header_offset`` counted from the first byte.
        start: its local header's first byte.
        end: behind its last byte: the next member's ``start``, or the central directory's. Between
            the two are header, data and data descriptor, each in the length that it has.
    """

    info: ZipInfo
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class ZipIndex:
    """The files of a ZIP by name, and the bytes of single ones.

    An ordinary class, so that Prefect hands it from task to task as it is.

    Attributes:
        members: in order of their bytes, without folders and the noise of desktop systems.
        unusable: files that no batch may hold, and why, as ``members.Names`` has them.
    """

    def __init__(
        self, file: IO[bytes], limits: Limits = DEFAULT_LIMITS, names: Names | None = None
    ) -> None:
        """Read the central directory.

        Args:
            file: the archive, seekable; what its reading raises is passed on. It must stay open.
            limits: that it has to keep to.

        Raises:
            ArchiveError: a damaged or truncated archive, members that overlap, names that lead
                elsewhere or occur twice, encryption, several volumes, more than the limits allow.
        """
        self._limits = limits
        file.seek(max(0, file.seek(0, io.SEEK_END) - TAIL))
        with reading():
            count = _member_count(file.read(), limits)
            self._zip = ZipFile(file)
        infos = self._zip.infolist()
        if len(infos) != count:
            raise ArchiveError(
                f"The archive is damaged: it lists {len(infos):,} files but counts {count:,}; "
                "export it again."
            )
        names = names or Names(limits)
        self.members = names.usable(_files(_spans(infos, self._zip.start_dir), names))
        self.unusable = names.unusable

    def read(self, name: str) -> bytes:
        """The bytes of one member.

        Raises:
            ArchiveError: if they are damaged, or too many.
        """
        check_in_memory(f"'{name[:80]}'", self.members[name].info.file_size, self._limits)
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a member of any size, piece by piece. Any thread may read any member.

        Raises:
            ArchiveError: in the end, if they are not those that size and CRC speak of.
        """
        info = self.members[name].info
        left = info.file_size
        with reading(), self._open(info) as content:
            while chunk := content.read(CHUNK):
                left -= len(chunk)
                yield chunk
        if left:
            raise ArchiveError(
                f"The archive is damaged: '{name[:80]}' is shorter than it says; export it again."
            )

    def _open(self, info: ZipInfo) -> IO[bytes]:
        # Python 3.12 skips the local header's extra field from where the file happens to stand, and
        # other threads, which read under the same lock, move it.
        with self._zip._lock:  # type: ignore[attr-defined]
            return self._zip.open(info)

    def why_not_spliceable(self, folder: str) -> str | None:
        """Why the archive's members cannot be copied into batches as they are, or None.

        The copied local header is the source's own, so what it says must hold in the batch.

        Args:
            folder: what stands before the images' names, as ``manifest.Partition`` has it.
        """
        if folder:
            return f"its images stand in a folder, '{folder}', which a copied member would keep"
        for name, span in self.members.items():
            info = span.info
            if info.orig_filename != name:
                return f"'{name}' is called '{info.orig_filename}' inside it"
            if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                return f"'{name}' is compressed by method {info.compress_type}, not by DEFLATE"
            if span.size > _shortest(info) + LONGEST_EXTRA_FIELD + LONGEST_DATA_DESCRIPTOR:
                return f"after '{name}' it has bytes that belong to no file"
        return None


def ranged_file(read: Read, size: int, read_ahead: int = READ_AHEAD) -> IO[bytes]:
    """An archive of ``size`` bytes that is somewhere else, as a file for ``ZipIndex``.

    Args:
        read: gives bytes of the archive; what it raises is passed on.
        read_ahead: bytes that a short read asks for.
    """
    return io.BufferedReader(_RangedFile(read, size), read_ahead)


class _RangedFile(io.RawIOBase):
    """Fetches what is read, and the last bytes, where most is read, beforehand and once."""

    def __init__(self, read: Read, size: int) -> None:
        self._fetch = read
        self._size = size
        self._position = 0
        self._tail_start = max(0, size - TAIL)
        self._tail = read(self._tail_start, size - self._tail_start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("The archive is shorter than it says.")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = max(0, min(len(buffer), self._size - self._position))
        if self._position >= self._tail_start:
            start = self._position - self._tail_start
            data = self._tail[start : start + length]
        else:
            data = self._fetch(self._position, length)
        buffer[:length] = data
        self._position += length
        return length


def _member_count(tail: bytes, limits: Limits) -> int:
    """The number of members that the end records state.

    ``ZipFile`` finds the same records in the same places, but does not compare the count, nor look
    at the directory's size before it reads it.
    """
    # From the back: the record without a comment is the last that fits.
    last = max(0, len(tail) - END_OF_CENTRAL_DIRECTORY.size + 4)
    position = tail.rfind(b"PK\5\6", 0, last)
    if position < 0:
        raise ArchiveError(
            "The archive is damaged or incomplete (its central directory is missing); "
            "export it again."
        )
    _, *volumes, here, count, size, _, comment = END_OF_CENTRAL_DIRECTORY.unpack_from(
        tail, position
    )
    if position + END_OF_CENTRAL_DIRECTORY.size + comment != len(tail):
        raise ArchiveError(
            "The archive is damaged or incomplete (its last record does not end where the file "
            "does); export it again."
        )
    locator = position - ZIP64_END_OF_CENTRAL_DIRECTORY_LOCATOR.size
    record = locator - ZIP64_END_OF_CENTRAL_DIRECTORY.size
    if record >= 0 and tail.startswith(b"PK\6\7", locator) and tail.startswith(b"PK\6\6", record):
        _, _, _, _, *volumes, here, count, size, _ = ZIP64_END_OF_CENTRAL_DIRECTORY.unpack_from(
            tail, record
        )
    if any(volumes) or here != count:
        raise ArchiveError(
            "The archive is one volume of several; zip the export again as a single file."
        )
    check_count(count, limits)
    check_in_memory("central directory", size, limits)
    return int(count)


def _spans(infos: Iterable[ZipInfo], directory_start: int) -> list[MemberSpan]:
    """Each member's bytes, by the order of the offsets.

    Raises:
        ArchiveError: if two members share bytes, or one reaches beyond the archive. Honest
            archives do neither; a small one that unpacks to terabytes does.
    """
    by_offset = sorted(infos, key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in by_offset), directory_start][1:]
    spans = []
    for info, end in zip(by_offset, ends, strict=True):
        if info.volume:
            raise ArchiveError(
                "The archive is one volume of several; zip the export again as a single file."
            )
        start = info.header_offset
        if start < 0 or start + _shortest(info) > directory_start:
            raise ArchiveError(
                f"The archive is damaged or incomplete: '{info.filename[:80]}' reaches beyond it; "
                "export it again."
            )
        if start + _shortest(info) > end:
            raise ArchiveError(
                f"The archive is damaged: '{info.filename[:80]}' overlaps the file after it; "
                "export it again."
            )
        spans.append(MemberSpan(info, start, end))
    return spans


def _shortest(info: ZipInfo) -> int:
    """Bytes of a member without extra field and data descriptor, which only it itself states."""
    return LOCAL_FILE_HEADER.size + len(encoded_name(info)) + info.compress_size


def _files(spans: Iterable[MemberSpan], names: Names) -> dict[str, MemberSpan]:
    files: dict[str, MemberSpan] = {}
    for span in spans:
        raw = span.info.orig_filename
        name = names.claim(raw, raw.endswith("/"), _why_unusable(span.info))
        if name is not None:
            files[name] = span
    return files


def _why_unusable(info: ZipInfo) -> str | None:
    # 4.4.15: Unix programs keep a file's mode in the upper two bytes.
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system in UNIX_LIKE else 0
    if kind == stat.S_IFLNK:
        return LINK
    if kind not in (0, stat.S_IFREG):
        return DEVICE
    if info.flag_bits & ENCRYPTED:
        return "is encrypted; zip the export again without a password"
    return None
