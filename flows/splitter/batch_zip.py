"""One batch as a ZIP file: its manifest and its images, stored, written as it is read."""

import io
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from zipfile import ZIP_STORED, ZipInfo

from flows.splitter import zip_records
from flows.splitter.archive import CHUNK, DosDateTime, Member
from flows.splitter.manifest import MANIFEST, Batch

REGULAR_FILE = 0o100644 << 16
"""External attributes of a file that its owner may write and all may read."""


class BatchZip(io.RawIOBase):
    """The bytes of a batch ZIP, made while they are read: no copy on disk, none in memory.

    Same batch and store, same bytes. JPEGs do not get smaller, so members are stored; their CRCs
    and sizes are known beforehand, so each local header is complete and any program can read the
    file as a stream.

    Args:
        batch: what goes in.
        images: the archive's members by the names that the batch's rows use.
        store: the file that ``archive.extract`` filled.
        modified: the time stamp of ``manifest.csv``.

    Attributes:
        size: bytes of the whole ZIP.
    """

    def __init__(
        self, batch: Batch, images: Mapping[str, Member], store: Path, modified: DosDateTime
    ) -> None:
        self._manifest = batch.manifest
        manifest = Member(MANIFEST, 0, len(batch.manifest), zlib.crc32(batch.manifest), modified)
        self._images = [images[name] for name in batch.images]
        self._members = [_zip_info(MANIFEST, manifest)]
        self._members += [_zip_info(name, images[name]) for name in batch.images]
        end = 0
        for member in self._members:
            member.header_offset = end
            end += len(zip_records.local_file_header(member)) + member.file_size
        self._central_directory = b"".join(zip_records.central_directory(self._members, end))
        self.size = end + len(self._central_directory)
        self._store = store.open("rb", buffering=0)
        self._chunks = self._content()
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        filled = 0
        while filled < len(buffer):
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
                if not self._rest:
                    break
            taken = min(len(buffer) - filled, len(self._rest))
            buffer[filled : filled + taken] = self._rest[:taken]
            self._rest = self._rest[taken:]
            filled += taken
        return filled

    def close(self) -> None:
        self._store.close()
        super().close()

    def _content(self) -> Iterator[bytes]:
        manifest, *images = self._members
        yield zip_records.local_file_header(manifest)
        yield self._manifest
        for info, image in zip(images, self._images, strict=True):
            yield zip_records.local_file_header(info)
            self._store.seek(image.offset)
            left = image.size
            while left:
                chunk = self._store.read(min(left, CHUNK))
                if not chunk:
                    raise OSError(f"The extracted images end before '{image.name}' does.")
                left -= len(chunk)
                yield chunk
        yield self._central_directory


def _zip_info(name: str, member: Member) -> ZipInfo:
    info = ZipInfo(name, member.modified)
    info.compress_type = ZIP_STORED
    info.create_system = 3  # Unix, whose attributes follow, on whichever system this runs
    info.external_attr = REGULAR_FILE
    info.flag_bits = 0 if name.isascii() else zip_records.UTF8_NAME
    info.CRC = member.crc
    info.file_size = info.compress_size = member.size
    return info
