"""A batch ZIP of unpacked images, from which any range of bytes can be read."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from functools import partial
from io import FileIO
from itertools import accumulate, pairwise
from pathlib import Path

from splitter.archives import Contents, DosDateTime, Member, Watermark, zip_records
from splitter.archives.watermark import COMPLETE
from splitter.aws.s3 import MAX_PARTS, MIB
from splitter.batches.assembly import SentPart
from splitter.manifest import MANIFEST, Batch, Partition

PART_SIZE = 5 * MIB
"""The smallest that S3 takes: each of the many connections holds a part in memory."""


def parts(cut: Partition, contents: Contents) -> list[list[SentPart]]:
    """The parts of each batch of an export. The images may still be on their way to the store."""
    images = {name: contents.members[file] for name, file in cut.images.items()}
    modified = contents.members[cut.manifest].modified
    return [
        BatchZip(batch, images, contents.store, modified, contents.unpacked).parts()
        for batch in cut.batches
    ]


class BatchZip:
    """The bytes of a batch ZIP, without a copy on disk or in memory.

    The same batch and store give the same bytes. Members are stored, because JPEGs do not get
    smaller. Each local header is complete, because CRC and size are known beforehand, so any
    program can read the file as a stream.

    Args:
        batch: its rows and images.
        images: the archive's members by the names that the batch's rows use.
        store: the file that ``archive.extract`` filled.
        modified: the time stamp of ``manifest.csv``.
        unpacked: how far the store is filled; a read waits for it.

    Attributes:
        size: bytes of the whole ZIP.
    """

    def __init__(
        self,
        batch: Batch,
        images: Mapping[str, Member],
        store: Path,
        modified: DosDateTime,
        unpacked: Watermark = COMPLETE,
    ) -> None:
        self._store = store
        self._unpacked = unpacked
        info, manifest = zip_records.stored_file(MANIFEST, batch.manifest, modified, 0)
        infos = [info]
        self._pieces: list[bytes | Member] = [manifest]
        end = len(manifest)
        for name in batch.images:
            image = images[name]
            info = zip_records.stored_member(name, image.size, image.crc, image.modified, end)
            header = zip_records.local_file_header(info)
            infos.append(info)
            self._pieces += [header, image]
            end += len(header) + image.size
        self._pieces.append(b"".join(zip_records.central_directory(infos, end)))
        *self._starts, self.size = accumulate(map(_size, self._pieces), initial=0)

    def parts(self) -> list[SentPart]:
        """The parts of the ZIP, for a multipart upload."""
        length = max(PART_SIZE, -(-self.size // MAX_PARTS))
        cuts = [*range(0, self.size, length), self.size]
        return [
            # Sent in the order in which the store is filled.
            SentPart(end - start, partial(self.read, start, end), self._needed(start, end))
            for start, end in pairwise(cuts)
        ]

    def read(self, start: int, end: int) -> bytearray:
        """The bytes from ``start`` up to, not including, ``end``, in any thread.

        Raises:
            OSError: if the store is shorter than before.
            StoppedError: if the images will not be unpacked.
        """
        self._unpacked.wait_for(self._needed(start, end))
        content = bytearray(end - start)
        rest = memoryview(content)
        number = bisect_right(self._starts, start) - 1
        skipped = start - self._starts[number]
        with self._store.open("rb", buffering=0) as store:
            while rest:
                piece = self._pieces[number]
                taken = rest[: _size(piece) - skipped]
                if isinstance(piece, bytes):
                    taken[:] = piece[skipped : skipped + len(taken)]
                else:
                    _fill(taken, store, piece.offset + skipped)
                rest = rest[len(taken) :]
                number += 1
                skipped = 0
        return content

    def _needed(self, start: int, end: int) -> int:
        """The bytes of the store, from its front, that a range of the ZIP is made of."""
        pieces = self._pieces[
            bisect_right(self._starts, start) - 1 : bisect_left(self._starts, end)
        ]
        return max((piece.end for piece in pieces if isinstance(piece, Member)), default=0)


def _size(piece: bytes | Member) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.size


def _fill(buffer: memoryview, store: FileIO, position: int) -> None:
    store.seek(position)
    while buffer:
        count = store.readinto(buffer)
        if not count:
            raise OSError("The unpacked images end before a batch does.")
        buffer = buffer[count:]
