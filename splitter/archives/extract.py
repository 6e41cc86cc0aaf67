"""Unpacks an archive of any format into one file and checks it."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import IO

from splitter.archives.formats import identify
from splitter.archives.members import (
    DEFAULT_LIMITS,
    Limits,
    Member,
    Names,
    check_in_memory,
    most_unpacked,
)
from splitter.archives.tar import extract_tar
from splitter.archives.zip_index import ZipIndex, file_reader
from splitter.sentences import Said


class Contents:
    """The files of an archive by name, unpacked into one store.

    Not a dataclass, because Prefect visits every value inside a dataclass that a task receives.

    Attributes:
        store: the file with the bytes of all members, one after another.
        members: the files, without folders and noise of desktop systems.
        unusable: files that no batch may contain, with the reason; see ``members.Names``.
        remarks: warnings about the archive.
    """

    def __init__(
        self,
        store: Path,
        members: dict[str, Member],
        limits: Limits = DEFAULT_LIMITS,
        unusable: Mapping[str, Said] = MappingProxyType({}),
        remarks: Sequence[str] = (),
    ) -> None:
        self.store = store
        self.members = members
        self.unusable = dict(unusable)
        self.remarks = remarks
        self._limits = limits

    def read(self, name: str) -> bytes:
        """The bytes of one member.

        Raises:
            ArchiveError: above ``max_in_memory`` bytes.
        """
        member = self.members[name]
        check_in_memory(name, member.size, self._limits)
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
    names = Names(limits)
    size = archive.stat().st_size
    max_size = most_unpacked(size, limits)
    with archive.open("rb") as source, store.open("wb") as output:
        format = identify(file_reader(source), size)
        remarks: Sequence[str] = ()
        if format == "zip":
            members = _extract_zip(source, output, progress, names, limits)
        else:
            members, remarks = extract_tar(source, format, output, progress, names, max_size)
            remarks = [*remarks, *map(str, names.remarks())]
    return Contents(store, names.usable(members), limits, names.unusable, remarks)


def _extract_zip(
    archive: IO[bytes],
    output: IO[bytes],
    progress: Callable[[int], object],
    names: Names,
    limits: Limits,
) -> dict[str, Member]:
    index = ZipIndex.of_file(archive, limits, names)
    members: dict[str, Member] = {}
    end = 0
    for name, span in index.members.items():
        info = span.info
        members[name] = Member(end, info.file_size, info.CRC, info.date_time)
        end += info.file_size

    def unpack(name: str) -> None:
        position = members[name].offset
        for chunk in index.chunks(name):
            os.pwrite(output.fileno(), chunk, position)
            position += len(chunk)
            progress(len(chunk))

    # Inflating, CRC-32 and file calls release the GIL, so threads use every core.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in pool.map(unpack, members):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return members
