"""Where the members of a ZIP stand, read from its end: on disk, or in S3 by ranged requests.

Section numbers are those of PKWARE's APPNOTE, as in ``zip_records``.
"""

import io
import os
import stat
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import IO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipInfo

from isal.isal_zlib import crc32

from splitter.archives.members import (
    CHUNK,
    DEFAULT_LIMITS,
    DEVICE,
    LINK,
    ArchiveError,
    Limits,
    Names,
    cause,
    check_in_memory,
    most_unpacked,
    reading,
    too_much,
)
from splitter.archives.zip_data import UNPACKERS, method_name, unpacked
from splitter.archives.zip_directory import MASKED, TAIL, Read, read_directory, same_name
from splitter.archives.zip_records import (
    DATA_DESCRIPTOR,
    LOCAL_FILE_HEADER,
    MAX_16,
    UTF8_NAME,
    encoded_name,
)

READ_AHEAD = 256 * 1024

UNIX_LIKE = (3, 19)  # 4.4.2.2: Unix, OS X
ENCRYPTED = 0x1  # 4.4.4, bit 0
AES = 99  # 4.4.5
PATCH = 0x20  # 4.4.4, bit 5
STRENGTH = 0x6  # 4.4.4, bits 1 and 2: how hard the writer tried, which no reader goes by
OVERSIZED = (
    "is larger than 4 GiB, and macOS does not note the size of such a file; zip the export again "
    "by another program"
)
LATEST_VERSION = 46  # 4.4.3.2, ten times; Info-ZIP's unzip passes over what asks for a later one
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


@dataclass(frozen=True, slots=True)
class LocalHeader:
    """What stands in front of a member's data (4.3.7); ``data`` is where that begins."""

    version: int
    flags: int
    method: int
    crc: int
    compress_size: int
    file_size: int
    name: bytes
    extra: bytes
    data: int


class ZipIndex:
    """The files of a ZIP by name, and the bytes of single ones.

    An ordinary class, so that Prefect hands it from task to task as it is.

    Attributes:
        members: in order of their bytes, without folders and the noise of desktop systems.
        unusable: files that no batch may hold, and why, as ``members.Names`` has them.
        remarks: what is unusual about the archive.
    """

    def __init__(
        self, file: IO[bytes], limits: Limits = DEFAULT_LIMITS, names: Names | None = None
    ) -> None:
        """Read the central directory.

        Args:
            file: the archive, seekable; what its reading raises is passed on. It must stay open.
            limits: that it has to keep to.
            names: takes the names, if not the index alone is asked for them.

        Raises:
            ArchiveError: a damaged or truncated archive, members that overlap, one volume of
                several, more than the limits allow.
        """
        self._limits = limits
        names = names or Names(limits)
        self.read_at = reader(file)
        size = file.seek(0, io.SEEK_END)
        with reading():
            directory = read_directory(self.read_at, size, limits)
            spans = _spans(directory.infos, directory.start)
        self.members = names.usable(_files(spans, names, directory.oversized))
        most = most_unpacked(size, limits)
        if sum(span.info.file_size for span in self.members.values()) > most:
            raise too_much(most)
        self.unusable = names.unusable
        self.remarks = directory.remarks

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
        return content(name, self.members[name], self.read_at)

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
                return f"'{name}' is called '{ascii(info.orig_filename)[1:-1]}' inside it"
            if not (name.isascii() or info.flag_bits & UTF8_NAME):
                return f"'{name}' is not marked as UTF-8, so programs read it in several ways"
            if not unicodedata.is_normalized("NFC", name):
                return f"'{name}' is not in Unicode's composed form (NFC)"
            if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                return (
                    f"'{name}' is compressed by {method_name(info.compress_type)}, not by DEFLATE"
                )
            if info.flag_bits & ~(STRENGTH | DATA_DESCRIPTOR | UTF8_NAME):
                return f"'{name}' has flags that some programs refuse"
            if info.extract_version > LATEST_VERSION:
                return f"'{name}' asks for a later version of ZIP than programs read"
            if info.compress_type == ZIP_STORED and info.flag_bits & DATA_DESCRIPTOR:
                return f"'{name}' is stored without its size in front, so no stream can be read"
            if span.size > _shortest(info) + LONGEST_EXTRA_FIELD + LONGEST_DATA_DESCRIPTOR:
                return f"after '{name}' it has bytes that belong to no file"
        return None


def reader(file: IO[bytes]) -> Read:
    """``file`` as a function that any thread may call."""
    try:
        return partial(_pread, file.fileno())
    except OSError:  # not a file of this machine's
        lock = Lock()

        def read(start: int, length: int) -> bytes:
            with lock:
                file.seek(start)
                return file.read(length)

        return read


def _pread(descriptor: int, start: int, length: int) -> bytes:
    # One call may give less; it gives none at the end.
    pieces = []
    while length > 0 and (piece := os.pread(descriptor, length, start)):
        pieces.append(piece)
        start += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def header_guess(span: MemberSpan) -> int:
    """Bytes that a member's local header takes in most archives, which have few extra fields."""
    return min(span.size, LOCAL_FILE_HEADER.size + len(encoded_name(span.info)) + 64)


def local_header(name: str, span: MemberSpan, read: Read) -> LocalHeader:
    """What stands in front of a member's data.

    Raises:
        ArchiveError: if there is none, or if it leaves less room than the data takes.
    """
    data = read(span.start, header_guess(span))
    if len(data) < LOCAL_FILE_HEADER.size or not data.startswith(b"PK\3\4"):
        raise ArchiveError(
            f"The archive is damaged: '{name[:80]}' is not where the table of contents says; "
            "export it again."
        )
    _, version, flags, method, _, _, crc, packed, size, length, more = (
        LOCAL_FILE_HEADER.unpack_from(data)
    )
    end = LOCAL_FILE_HEADER.size + length + more
    if span.start + end + span.info.compress_size > span.end:
        raise ArchiveError(
            f"The archive is damaged: '{name[:80]}' overlaps the file after it; export it again."
        )
    if end > len(data):
        data += read(span.start + len(data), end - len(data))
    start = LOCAL_FILE_HEADER.size
    return LocalHeader(
        version=version & 0xFF,
        flags=flags,
        method=method,
        crc=crc,
        compress_size=packed,
        file_size=size,
        name=data[start : start + length],
        extra=data[start + length : end],
        data=span.start + end,
    )


def content(name: str, span: MemberSpan, read: Read) -> Iterator[bytes]:
    """The bytes of a member, piece by piece, compared with what the central directory says.

    Raises:
        ArchiveError: for what ``local_header`` refuses, for another name in the local header, and
            in the end for another size or CRC.
    """
    info = span.info
    header = local_header(name, span, read)
    if not same_name(info, header.name, header.flags, header.extra):
        raise ArchiveError(
            f"The archive is damaged: '{name[:80]}' has another name in the table of contents than "
            "where it stands; export it again."
        )

    def fed(length: int) -> Iterator[bytes]:
        position, end = header.data, header.data + info.compress_size
        while position < end:
            # Decompressors are fed little at a time; a read is longer.
            block = read(position, min(max(length, CHUNK), end - position))
            if not block:
                raise EOFError("the file ends early")
            position += len(block)
            if len(block) <= length:
                yield block
                continue
            for start in range(0, len(block), length):
                yield block[start : start + length]

    left, crc = info.file_size, 0
    try:
        with reading():
            for chunk in unpacked(info.compress_type, fed, info.file_size):
                left -= len(chunk)
                if left < 0:
                    break
                crc = crc32(chunk, crc)
                yield chunk
    except ArchiveError as error:
        raise _damaged(name, str(error.__cause__ or error)) from error
    if left:
        raise _damaged(name, f"it is {'longer' if left < 0 else 'shorter'} than the archive says")
    if crc != info.CRC:
        raise _damaged(name, "its checksum is wrong")


def _damaged(name: str, what: str) -> ArchiveError:
    return ArchiveError(
        f"The archive is damaged: '{name[:80]}' cannot be unpacked ({cause(what)}); "
        "export it again."
    )


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
        start = info.header_offset
        if start < 0 or start + _shortest(info) > directory_start:
            raise ArchiveError(
                f"The archive is damaged or incomplete: '{info.filename[:80]}' reaches beyond "
                "its end; export it again."
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


def _files(
    spans: Iterable[MemberSpan], names: Names, oversized: Collection[int]
) -> dict[str, MemberSpan]:
    files: dict[str, MemberSpan] = {}
    for span in spans:
        why_not = OVERSIZED if span.start in oversized else _why_unusable(span.info)
        name = names.claim(span.info.filename, _is_folder(span.info), why_not)
        if name is not None:
            files[name] = span
    return files


def _is_folder(info: ZipInfo) -> bool:
    return info.filename.endswith(("/", "\\")) or _kind(info) == stat.S_IFDIR


def _kind(info: ZipInfo) -> int:
    """The type of a file as Unix has it; 0 where none is stated."""
    # 4.4.15: Unix programs keep a file's mode in the upper two bytes. Others may have anything
    # there, but several unpackers make a link whoever says so.
    kind = stat.S_IFMT(info.external_attr >> 16)
    return kind if info.create_system in UNIX_LIKE or kind == stat.S_IFLNK else 0


def _why_unusable(info: ZipInfo) -> str | None:
    kind = _kind(info)
    if kind == stat.S_IFLNK:
        return LINK
    if kind not in (0, stat.S_IFREG):
        return DEVICE
    if info.flag_bits & (ENCRYPTED | MASKED) or info.compress_type == AES:
        return "is encrypted; zip the export again without a password"
    if info.compress_type not in UNPACKERS or info.flag_bits & PATCH:
        return (
            f"is compressed by a method that cannot be read here, {method_name(info.compress_type)}"
            f" (method {info.compress_type}); zip the images again with ordinary compression, "
            "called Deflate"
        )
    return None
