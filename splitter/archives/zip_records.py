"""Reads and writes the records of a ZIP file.

Section numbers refer to PKWARE's APPNOTE 6.3.10:
https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT. A ``zipfile.ZipInfo`` describes a
member.
"""

import struct
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipInfo
from zlib import crc32

from splitter.archives.members import DosDateTime, plain

LOCAL = b"PK\3\4"
CENTRAL = b"PK\1\2"
END = b"PK\5\6"
ZIP64_END = b"PK\6\6"
ZIP64_LOCATOR = b"PK\6\7"
DESCRIPTOR = b"PK\7\x08"
DIGITAL_SIGNATURE = b"PK\5\5"  # 4.3.13

LOCAL_FILE_HEADER = struct.Struct("<4s5H3L2H")  # 4.3.7
CENTRAL_DIRECTORY_HEADER = struct.Struct("<4s6H3L5H2L")  # 4.3.12
ZIP64_END_OF_CENTRAL_DIRECTORY = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
ZIP64_END_OF_CENTRAL_DIRECTORY_LOCATOR = struct.Struct("<4sLQL")  # 4.3.15
END_OF_CENTRAL_DIRECTORY = struct.Struct("<4s4H2LH")  # 4.3.16

ENCRYPTED = 0x0001  # 4.4.4, bit 0
STRENGTH = 0x0006  # bits 1 and 2: the compression level, which no reader needs
DATA_DESCRIPTOR = 0x0008  # bit 3
PATCH = 0x0020  # bit 5
UTF8_NAME = 0x0800  # bit 11
MASKED = 0x2000  # bit 13: the central directory is encrypted

UNIX, MACOS = 3, 19  # 4.4.2.2
REGULAR_FILE = 0o100644 << 16  # 4.4.15, in Unix's form

DEFLATE64 = 9  # 4.4.5
ZSTANDARD = 93
XZ = 95
AES = 99

ZIP64_VERSION = 45  # 4.4.3.2, ten times the version, like the next two
VERSIONS = {ZIP_STORED: 10, ZIP_DEFLATED: 20}
NEWEST_VERSION = 63

ZIP64_EXTRA_ID = 0x0001  # 4.5.3
UNICODE_PATH_EXTRA_ID = 0x7075  # 4.6.9
LONGEST_EXTRA_FIELD = 0xFFFF  # 4.4.11
LONGEST_DATA_DESCRIPTOR = 24  # 4.3.9: signature, CRC-32 and two sizes of eight bytes

# A field with all bits set refers to the value in the Zip64 record (4.4.1.4).
MAX_16 = 0xFFFF
MAX_32 = 0xFFFFFFFF

MOST_ENDS = 16
"""Places at the end of an archive that are searched for a record."""

CODE_PAGES = ("cp437", "cp850", "cp1252")
"""The western European DOS and ANSI code pages, which Windows uses for names without a flag."""

LONGEST_COMPARED_NAME = 1024
"""Characters. Normalising a longer name can take minutes, and no file has one."""


@dataclass(frozen=True, slots=True)
class End:
    """The records at a ZIP's end (4.3.14 to 4.3.16).

    Attributes:
        position: offset of the first of these records.
        stop: end of the last record, including its comment.
        count, size, offset: entries, bytes and stated offset of the central directory.
        several: whether the records name several volumes.
    """

    position: int
    stop: int
    count: int
    size: int
    offset: int
    zip64: bool
    several: bool

    def starts(self) -> tuple[int, int]:
        """The possible offsets of the directory: directly before the end records, or as stated."""
        return self.position - self.size, self.offset

    def counts(self, count: int) -> bool:
        """Whether the records state ``count`` entries. Some programs count modulo 65,536."""
        return count == self.count if self.zip64 else (count - self.count) % (MAX_16 + 1) == 0


def stored_member(
    name: str, size: int, crc: int, modified: DosDateTime, offset: int = 0
) -> ZipInfo:
    """The entry of an uncompressed regular file with mode 644."""
    member = ZipInfo(name, modified)
    member.external_attr = REGULAR_FILE
    member.flag_bits = 0 if name.isascii() else UTF8_NAME
    member.CRC = crc
    member.file_size = member.compress_size = size
    member.header_offset = offset
    return member


def stored_file(
    name: str, content: bytes, modified: DosDateTime, offset: int
) -> tuple[ZipInfo, bytes]:
    """The entry of an uncompressed file at ``offset``, and its local header and content."""
    member = stored_member(name, len(content), crc32(content), modified, offset)
    return member, local_file_header(member) + content


# Writing


def local_file_header(member: ZipInfo) -> bytes:
    """The local header of a member with known CRC and sizes."""
    sizes = (member.compress_size, member.file_size)
    extra = b""
    if max(sizes) >= MAX_32:  # both sizes are in the field (4.5.3)
        extra = _zip64_field(member.file_size, member.compress_size)
        sizes = (MAX_32, MAX_32)
    name = encoded_name(member)
    return LOCAL_FILE_HEADER.pack(LOCAL, *_fields(member, name, extra, *sizes)) + name + extra


def central_directory(members: Iterable[ZipInfo], offset: int) -> Iterator[bytes]:
    """The central directory and the end records, record by record.

    Comments and extra fields are left out, because some programs refuse those that others wrote.
    Zip64 records are written only if a count, size or offset needs them.

    Args:
        members: their ``header_offset`` counts from the start of the file.
        offset: the central directory's offset.
    """
    count = size = 0
    for member in members:
        header = _central_directory_header(member)
        count += 1
        size += len(header)
        yield header
    end = offset + size
    if count >= MAX_16 or size >= MAX_32 or offset >= MAX_32:
        yield ZIP64_END_OF_CENTRAL_DIRECTORY.pack(
            ZIP64_END,
            ZIP64_END_OF_CENTRAL_DIRECTORY.size - 12,
            *(ZIP64_VERSION, ZIP64_VERSION),
            *(0, 0),  # of one volume
            *(count, count, size, offset),
        )
        yield ZIP64_END_OF_CENTRAL_DIRECTORY_LOCATOR.pack(ZIP64_LOCATOR, 0, end, 1)
    narrow_count = min(count, MAX_16)
    yield END_OF_CENTRAL_DIRECTORY.pack(
        END, 0, 0, narrow_count, narrow_count, _narrow(size), _narrow(offset), 0
    )


def data_descriptors(member: ZipInfo) -> tuple[bytes, bytes]:
    """The data descriptor of a member below 4 GiB (4.3.9), with and without its signature."""
    sizes = (_narrow(member.compress_size), _narrow(member.file_size))
    descriptor = struct.pack("<3L", member.CRC, *sizes)
    return DESCRIPTOR + descriptor, descriptor


def encoded_name(member: ZipInfo) -> bytes:
    """The member's name in the encoding of its flags (appendix D)."""
    encoding = "utf-8" if member.flag_bits & UTF8_NAME else "cp437"
    return member.orig_filename.encode(encoding, "surrogateescape")


def _central_directory_header(member: ZipInfo) -> bytes:
    values = (member.file_size, member.compress_size, member.header_offset)
    wide = [value for value in values if value >= MAX_32]
    extra = _zip64_field(*wide) if wide else b""
    name = encoded_name(member)
    header = CENTRAL_DIRECTORY_HEADER.pack(
        CENTRAL,
        member.create_system << 8 | member.create_version,
        *_fields(member, name, extra, member.compress_size, member.file_size),
        *(0, 0, 0),  # no comment, the first volume, no internal attributes
        member.external_attr,
        _narrow(member.header_offset),
    )
    return header + name + extra


def _fields(
    member: ZipInfo, name: bytes, extra: bytes, compress_size: int, file_size: int
) -> tuple[int, ...]:
    """The fields that a local header and a directory entry have in common, in their order."""
    year, month, day, hour, minute, second = member.date_time
    needed = VERSIONS.get(member.compress_type, NEWEST_VERSION)
    return (
        max(needed, ZIP64_VERSION if extra else 0),
        member.flag_bits,
        member.compress_type,
        hour << 11 | minute << 5 | second // 2,
        (year - 1980) << 9 | month << 5 | day,
        member.CRC,
        _narrow(compress_size),
        _narrow(file_size),
        len(name),
        len(extra),
    )


def _zip64_field(*values: int) -> bytes:
    return struct.pack(f"<2H{len(values)}Q", ZIP64_EXTRA_ID, 8 * len(values), *values)


def _narrow(value: int) -> int:
    return min(value, MAX_32)


# Reading


def parse_local_header(data: bytes) -> tuple[ZipInfo, int] | None:
    """The local header at the start of ``data`` and its length, or None.

    If ``data`` is shorter than this length, name and extra field are cut. Sizes in a Zip64 field
    are ignored; see ``local_zip64_sizes``.
    """
    if len(data) < LOCAL_FILE_HEADER.size or not data.startswith(LOCAL):
        return None
    fields = LOCAL_FILE_HEADER.unpack_from(data)[1:]
    name_end = LOCAL_FILE_HEADER.size + fields[-2]
    end = name_end + fields[-1]
    return _parsed(fields, data[LOCAL_FILE_HEADER.size : name_end], data[name_end:end]), end


def parse_entry(data: bytes, position: int) -> tuple[ZipInfo, int] | None:
    """The directory entry at ``position`` and the position after it; None if ``data`` is too short.

    ``filename`` is the result of ``meant_name``. ``encoded_name`` turns ``orig_filename`` back into
    the original bytes.
    """
    start = position + CENTRAL_DIRECTORY_HEADER.size
    if start > len(data):
        return None
    _, made_by, *fields, comment, volume, _, attributes, offset = (
        CENTRAL_DIRECTORY_HEADER.unpack_from(data, position)
    )
    name_end = start + fields[-2]
    extra_end = name_end + fields[-1]
    if extra_end + comment > len(data):
        return None
    info = _parsed(fields, data[start:name_end], data[name_end:extra_end])
    info.create_version, info.create_system = made_by & 0xFF, made_by >> 8
    info.volume, info.external_attr, info.header_offset = volume, attributes, offset
    _widen(info)
    return info, extra_end + comment


def _parsed(fields: Sequence[int], name: bytes, extra: bytes) -> ZipInfo:
    info = ZipInfo()
    version, info.flag_bits, info.compress_type, time, date, *sizes = fields[:8]
    info.extract_version = version & 0xFF  # the upper byte names a system
    info.CRC, info.compress_size, info.file_size = sizes
    # 4.4.6. Impossible values such as month 0 are kept.
    day = ((date >> 9) + 1980, date >> 5 & 0xF, date & 0x1F)
    info.date_time = (*day, time >> 11, time >> 5 & 0x3F, (time & 0x1F) * 2)
    info.extra = extra
    encoding = "utf-8" if info.flag_bits & UTF8_NAME else "cp437"
    info.orig_filename = name.decode(encoding, "surrogateescape")
    info.filename = meant_name(name, info.flag_bits, extra)
    return info


def parse_ends(tail: bytes, tail_start: int) -> Iterator[End]:
    """The end records in an archive's last bytes, in reverse order."""
    for position in _last_first(END, tail, len(tail)):
        stop = position + END_OF_CENTRAL_DIRECTORY.size
        if stop > len(tail):
            continue
        _, disk, first_disk, _, count, size, offset, comment = END_OF_CENTRAL_DIRECTORY.unpack_from(
            tail, position
        )
        start = position
        wide = _zip64_end(tail, position)
        if wide:
            start, (*_, disk, first_disk, _, count, size, offset) = wide
        several = not {disk, first_disk} <= {0, MAX_16}
        places = (tail_start + start, tail_start + stop + comment)
        yield End(*places, count, size, offset, wide is not None, several)


def _zip64_end(tail: bytes, position: int) -> tuple[int, tuple[int, ...]] | None:
    """The position and the fields of the Zip64 record of the end record at ``position``.

    Other data may be between the record and its locator (4.3.14.3).
    """
    locator = position - ZIP64_END_OF_CENTRAL_DIRECTORY_LOCATOR.size
    if locator < 0 or not tail.startswith(ZIP64_LOCATOR, locator):
        return None
    for record in islice(_last_first(ZIP64_END, tail, locator), MOST_ENDS):
        if record + ZIP64_END_OF_CENTRAL_DIRECTORY.size <= locator:
            fields = ZIP64_END_OF_CENTRAL_DIRECTORY.unpack_from(tail, record)
            if record + 12 + fields[1] == locator:
                return record, fields
    return None


def _last_first(signature: bytes, data: bytes, end: int) -> Iterator[int]:
    """The positions of a signature that begins before ``end``."""
    while (end := data.rfind(signature, 0, end + 3)) >= 0:
        yield end


def extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    """The complete fields of an extra field (4.5.1)."""
    position = 0
    while position + 4 <= len(extra):
        identifier, length = struct.unpack_from("<2H", extra, position)
        if position + 4 + length > len(extra):
            return
        yield identifier, extra[position + 4 : position + 4 + length]
        position += 4 + length


def local_zip64_sizes(extra: bytes) -> tuple[int, int] | None:
    """The compressed and uncompressed size in the Zip64 field of a local header (4.5.3)."""
    for identifier, value in extra_fields(extra):
        if identifier == ZIP64_EXTRA_ID and len(value) >= 16:
            size, packed = struct.unpack_from("<2Q", value)
            return packed, size
    return None


def _widen(info: ZipInfo) -> None:
    """Replace values that do not fit the header with those of the Zip64 field (4.5.3)."""
    for identifier, value in extra_fields(info.extra):
        if identifier != ZIP64_EXTRA_ID:
            continue
        for name in ("file_size", "compress_size", "header_offset"):
            if getattr(info, name) == MAX_32 and len(value) >= 8:
                setattr(info, name, int.from_bytes(value[:8], "little"))
                value = value[8:]
            elif len(value) >= 24 and getattr(info, name) == int.from_bytes(value[:8], "little"):
                value = value[8:]  # some programs write every value
        if info.volume == MAX_16 and len(value) >= 4:
            info.volume = int.from_bytes(value[:4], "little")
        return


def meant_name(name: bytes, flags: int, extra: bytes) -> str:
    """A member's decoded name.

    Bit 11 marks UTF-8. Without it, the Unicode Path field counts (4.6.9), then UTF-8, which macOS
    and Linux write without the bit, and then the DOS code page 437.
    """
    if flags & UTF8_NAME:
        return name.decode("utf-8", "surrogateescape")
    for identifier, value in extra_fields(extra):
        if identifier == UNICODE_PATH_EXTRA_ID and len(value) >= 5:
            version, crc = struct.unpack_from("<BL", value)
            if version == 1 and crc == crc32(name):
                return value[5:].decode("utf-8", "surrogateescape")
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("cp437")


def same_name(info: ZipInfo, header: ZipInfo) -> bool:
    """Whether a local header's name is equivalent to the directory's."""
    name = encoded_name(header)
    if name == encoded_name(info):
        return True
    names = {header.filename, *(name.decode(page, "replace") for page in CODE_PAGES)}
    meant = _comparable(info.filename)
    return any(
        _comparable(other) == meant for other in names if len(other) <= LONGEST_COMPARED_NAME
    )


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", plain(name))
