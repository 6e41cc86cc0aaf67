"""The records of a ZIP file, as PKWARE's APPNOTE 6.3.10 lays them out.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT; section numbers below are its own.
Members are described by ``zipfile.ZipInfo``; this module only turns them into bytes.
"""

import struct
from collections.abc import Iterable, Iterator
from zipfile import ZIP_STORED, ZipInfo

LOCAL_FILE_HEADER = struct.Struct("<4s5H3L2H")  # 4.3.7
CENTRAL_DIRECTORY_HEADER = struct.Struct("<4s6H3L5H2L")  # 4.3.12
ZIP64_END_OF_CENTRAL_DIRECTORY = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
ZIP64_END_OF_CENTRAL_DIRECTORY_LOCATOR = struct.Struct("<4sLQL")  # 4.3.15
END_OF_CENTRAL_DIRECTORY = struct.Struct("<4s4H2LH")  # 4.3.16

ZIP64_EXTRA_ID = 0x0001  # 4.5.3
ZIP64_VERSION = 45  # 4.4.3.2
DATA_DESCRIPTOR = 0x0008  # 4.4.4, bit 3
UTF8_NAME = 0x0800  # 4.4.4, bit 11
UNIX = 3  # 4.4.2
REGULAR_FILE = 0o100644 << 16  # 4.4.15, as Unix has it

# A field with all bits set says that the Zip64 record holds the value (4.4.1.4).
MAX_16 = 0xFFFF
MAX_32 = 0xFFFFFFFF


def stored_member(
    name: str, size: int, crc: int, modified: tuple[int, int, int, int, int, int]
) -> ZipInfo:
    """A regular file, not compressed, that its owner may write and all may read."""
    member = ZipInfo(name, modified)
    member.compress_type = ZIP_STORED
    member.create_system = UNIX  # on whichever system this runs, so that the bytes are the same
    member.external_attr = REGULAR_FILE
    member.flag_bits = 0 if name.isascii() else UTF8_NAME
    member.CRC = crc
    member.file_size = member.compress_size = size
    member.header_offset = 0
    return member


def local_file_header(member: ZipInfo) -> bytes:
    """The header in front of a member's bytes, its CRC and sizes known."""
    wide = MAX_32 in (_narrow(member.file_size), _narrow(member.compress_size))
    extra = (
        struct.pack("<2H2Q", ZIP64_EXTRA_ID, 16, member.file_size, member.compress_size)
        if wide
        else b""
    )
    name = encoded_name(member)
    return (
        LOCAL_FILE_HEADER.pack(
            b"PK\3\4",
            max(member.extract_version, ZIP64_VERSION if wide else 0),
            member.flag_bits,
            member.compress_type,
            _dos_time(member),
            _dos_date(member),
            member.CRC,
            MAX_32 if wide else member.compress_size,
            MAX_32 if wide else member.file_size,
            len(name),
            len(extra),
        )
        + name
        + extra
    )


def central_directory(members: Iterable[ZipInfo], offset: int) -> Iterator[bytes]:
    """The central directory and the end records, header by header.

    Zip64 records appear where a count, size or offset needs them, and only there.

    Args:
        members: with ``header_offset`` counted from the start of the file.
        offset: where the central directory begins.
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
            b"PK\6\6",
            ZIP64_END_OF_CENTRAL_DIRECTORY.size - 12,
            ZIP64_VERSION,
            ZIP64_VERSION,
            0,
            0,
            count,
            count,
            size,
            offset,
        )
        yield ZIP64_END_OF_CENTRAL_DIRECTORY_LOCATOR.pack(b"PK\6\7", 0, end, 1)
    yield END_OF_CENTRAL_DIRECTORY.pack(
        b"PK\5\6",
        0,
        0,
        min(count, MAX_16),
        min(count, MAX_16),
        _narrow(size),
        _narrow(offset),
        0,
    )


def encoded_name(member: ZipInfo) -> bytes:
    """The member's name in the encoding that its flags state (appendix D)."""
    encoding = "utf-8" if member.flag_bits & UTF8_NAME else "cp437"
    return member.orig_filename.encode(encoding, "surrogateescape")


def _central_directory_header(member: ZipInfo) -> bytes:
    fields = (member.file_size, member.compress_size, member.header_offset)
    wide = [field for field in fields if field >= MAX_32]
    extra = _without_zip64(member.extra)
    if wide:
        extra = struct.pack(f"<2H{len(wide)}Q", ZIP64_EXTRA_ID, 8 * len(wide), *wide) + extra
    name = encoded_name(member)
    return (
        CENTRAL_DIRECTORY_HEADER.pack(
            b"PK\1\2",
            member.create_system << 8 | member.create_version,
            max(member.extract_version, ZIP64_VERSION if wide else 0),
            member.flag_bits,
            member.compress_type,
            _dos_time(member),
            _dos_date(member),
            member.CRC,
            _narrow(member.compress_size),
            _narrow(member.file_size),
            len(name),
            len(extra),
            len(member.comment),
            0,
            member.internal_attr,
            member.external_attr,
            _narrow(member.header_offset),
        )
        + name
        + extra
        + member.comment
    )


def _without_zip64(extra: bytes) -> bytes:
    kept = b""
    position = 0
    while position + 4 <= len(extra):
        identifier, length = struct.unpack_from("<2H", extra, position)
        end = position + 4 + length
        if end > len(extra):  # some readers refuse a directory with half a field
            break
        if identifier != ZIP64_EXTRA_ID:
            kept += extra[position:end]
        position = end
    return kept


def _narrow(value: int) -> int:
    return min(value, MAX_32)


def _dos_time(member: ZipInfo) -> int:
    _, _, _, hour, minute, second = member.date_time
    return hour << 11 | minute << 5 | second // 2


def _dos_date(member: ZipInfo) -> int:
    year, month, day, _, _, _ = member.date_time
    return (year - 1980) << 9 | month << 5 | day
