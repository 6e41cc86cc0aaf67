"""Unpacks an archive of any format into one file and checks it."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Self

from splitter.archives.formats import identify
from splitter.archives.members import DEFAULT_LIMITS, Limits, Member, check_in_memory
from splitter.archives.tar import extract_tar
from splitter.archives.watermark import COMPLETE, Watermark
from splitter.archives.zip_index import ZipIndex, content, file_reader
from splitter.sentences import Problem


class Contents:
    """The files of an archive by name, unpacked into one store.

    Not a dataclass, because Prefect visits every value inside a dataclass that a task receives.

    Attributes:
        store: the file with the bytes of all members, one after another.
        members: the files, without folders and noise of desktop systems.
        unusable: files that no batch may contain, with the reason; see ``members.Names``.
        remarks: warnings about the archive.
        unpacked: the watermark of the store.
    """

    def __init__(
        self,
        store: Path,
        members: dict[str, Member],
        unusable: dict[str, Problem] | None = None,
        remarks: Sequence[Problem] = (),
        unpacked: Watermark = COMPLETE,
    ) -> None:
        self.store = store
        self.members = members
        self.unusable = unusable or {}
        self.remarks = remarks
        self.unpacked = unpacked

    @classmethod
    def expected(cls, index: ZipIndex, store: Path) -> Self:
        """The files of a ZIP and their positions in a store that ``extract_zip`` will fill."""
        members: dict[str, Member] = {}
        end = 0
        for name, span in index.members.items():
            info = span.info
            members[name] = Member(end, info.file_size, info.CRC, info.date_time)
            end += info.file_size
        return cls(store, members, index.unusable, index.remarks, Watermark())

    def read(self, name: str, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """The bytes of one member.

        Raises:
            ArchiveError: above ``max_in_memory`` bytes.
        """
        member = self.members[name]
        check_in_memory(name, member.size, limits)
        with self.store.open("rb") as store:
            return os.pread(store.fileno(), member.size, member.offset)


def extract(
    archive: Path,
    store: Path,
    progress: Callable[[int], object] = lambda _: None,
    limits: Limits = DEFAULT_LIMITS,
) -> Contents:
    """Unpack every file of the archive into ``store``, one after another, and check it.

    With a single file, no member's name becomes a path on this machine, and a network file system
    has to handle one file instead of 20,000.

    Args:
        archive: a ZIP, a tar or a compressed tar.
        store: the file to write.
        progress: called from any thread with the number of bytes unpacked since the last call.

    Raises:
        ArchiveError: if the archive is damaged, has a wrong checksum or exceeds ``limits``.
    """
    size = archive.stat().st_size
    with archive.open("rb") as source:
        read = file_reader(source)
        format = identify(read, size)
        if format == "zip":
            index = ZipIndex(read, size, limits)
            contents = Contents.expected(index, store)
            extract_zip(archive, index, contents, progress)
            contents.unpacked.finish()
            return contents
        with store.open("wb") as output:
            return Contents(store, *extract_tar(source, format, output, progress, limits))


def extract_zip(
    archive: Path,
    index: ZipIndex,
    contents: Contents,
    progress: Callable[[int], object] = lambda _: None,
    arrived: Watermark = COMPLETE,
) -> None:
    """Unpack every file of a ZIP into the store of ``contents`` and check it.

    Args:
        archive: the ZIP, which may still be downloading.
        contents: the positions of the files. Advances its watermark.
        progress: as in ``extract``.
        arrived: the watermark of the archive.

    Raises:
        ArchiveError: if a member is damaged or has a wrong checksum.
        StoppedError: if the download stops.
    """
    contents.store.touch()
    # Another attempt does not truncate the store, because parts of batches are read from it.
    with archive.open("rb") as source, contents.store.open("r+b") as output:
        read = file_reader(source)

        def unpack(name: str) -> int:
            span = index.members[name]
            arrived.wait_for(span.end)
            position = contents.members[name].offset
            for chunk in content(name, span, read):
                _write(output, chunk, position)
                position += len(chunk)
                progress(len(chunk))
            return position

        # Inflating, CRC-32 and file calls release the GIL, so threads use every core.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for end in pool.map(unpack, contents.members):
                    contents.unpacked.advance(end)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _write(file: IO[bytes], content: bytes, position: int) -> None:
    """Write all of ``content``; a nearly full file system takes less and raises no error."""
    rest = memoryview(content)
    while rest:
        count = os.pwrite(file.fileno(), rest, position)
        rest = rest[count:]
        position += count
