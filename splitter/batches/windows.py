"""Reads ranges of an archive with few requests: neighbours together, each byte once."""

import mmap
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Condition


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of the archive: from ``start`` up to, not including, ``end``."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


def windows_over(ranges: Iterable[Range], size: int, max_gap: int) -> Iterator[Range]:
    """The fewest windows that cover ``ranges``, ascending, each of at most ``size`` bytes.

    Args:
        ranges: in any order; they may overlap.
        max_gap: bytes between two ranges of a window; they are read but not used.
    """
    start = end = -1
    for found in sorted(ranges, key=lambda one: one.start):
        if start < 0 or found.start - end > max_gap or found.start - start >= size:
            if end > start:
                yield Range(start, end)
            start = end = max(found.start, end)
        end = max(end, found.end)
        while end - start > size:
            yield Range(start, start + size)
            start += size
    if end > start:
        yield Range(start, end)


class Windows:
    """Windows of an archive; each is read for all parts that need its bytes.

    Each window is read once, by the first thread that needs it, and not kept. If that thread fails,
    the others read the window themselves.
    """

    def __init__(
        self, windows: Sequence[Range], most: int, read: Callable[[int, int], Iterator[bytes]]
    ) -> None:
        """
        Args:
            windows: ascending.
            most: incomplete parts in memory, except those that a thread is filling. Other parts
                wait for their turn, and then read again the bytes that they missed.
            read: yields bytes of the archive in pieces: ``read(start, length)``.
        """
        self._windows = windows
        self._starts = [window.start for window in windows]
        self._read = read
        self._changed = Condition()
        self._waiting: defaultdict[int, set[_Gathering]] = defaultdict(set)
        self._most = most
        self._begun: set[_Gathering] = set()

    def cut(self, ranges: Iterable[Range]) -> Iterator[tuple[int, Range]]:
        """The ranges in their order, cut where windows are, each with its window's number."""
        for found in ranges:
            first = bisect_right(self._starts, found.start) - 1
            for number in range(first, bisect_right(self._starts, found.end - 1)):
                window = self._windows[number]
                yield number, Range(max(found.start, window.start), min(found.end, window.end))

    def expect(self, gathering: "_Gathering") -> None:
        """Copy the bytes that are read from now on to ``gathering``, as far as it needs them."""
        with self._changed:
            for number in gathering.places:
                self._waiting[number].add(gathering)

    def forget(self, gathering: "_Gathering") -> None:
        """Copy nothing more to ``gathering``, except from windows that are being read."""
        with self._changed:
            for number in gathering.places:
                self._waiting[number].discard(gathering)
            self._begun.discard(gathering)

    def fill(self, gathering: "_Gathering") -> None:
        """Read all windows that ``gathering`` needs, or wait for the threads that read them.

        Raises:
            Exception: if a window cannot be read.
        """
        numbers = sorted(gathering.places)
        for number in numbers:
            self._read_if_waiting(gathering, number)
        for number in numbers:  # those that other threads were reading
            while not self._is_filled(gathering, number):
                self._read_if_waiting(gathering, number)

    def _is_filled(self, gathering: "_Gathering", number: int) -> bool:
        """Wait for the thread that reads a window; False if it failed."""
        with self._changed:
            self._changed.wait_for(
                lambda: number in gathering.filled or gathering in self._waiting[number]
            )
            return number in gathering.filled

    def _read_if_waiting(self, gathering: "_Gathering", number: int) -> None:
        """Read a window for all that wait for it, unless another thread is reading it."""
        with self._changed:
            if gathering not in self._waiting[number]:
                return
            waiting = self._in_memory(gathering, self._waiting[number])
            self._waiting[number] -= waiting
            targets = [target for each in waiting for target in each.targets(number)]
        try:
            self._scatter(self._windows[number], targets)
        except BaseException:
            with self._changed:
                self._waiting[number] |= waiting & self._begun
                self._changed.notify_all()
            raise
        with self._changed:
            for each in waiting:
                each.filled.add(number)
            self._changed.notify_all()

    def _in_memory(
        self, gathering: "_Gathering", waiting: Iterable["_Gathering"]
    ) -> set["_Gathering"]:
        """The parts of ``waiting`` that take memory already, or may now; the earliest end first."""
        self._begun.add(gathering)
        for each in sorted(waiting, key=lambda one: one.end):
            if len(self._begun) < self._most:
                self._begun.add(each)
        return self._begun.intersection(waiting)

    def _scatter(self, window: Range, targets: "Iterable[_Target]") -> None:
        """Read a window and copy its bytes into the buffers of its ranges."""
        coming = sorted(targets, key=lambda target: -target[0].start)
        begun: list[_Target] = []
        start = window.start
        for piece in self._read(window.start, window.size):
            content = memoryview(piece)
            end = start + len(content)
            while coming and coming[-1][0].start < end:
                begun.append(coming.pop())
            for found, buffer in begun:
                first, last = max(found.start, start), min(found.end, end)
                into = buffer[first - found.start : last - found.start]
                into[:] = content[first - start : last - start]
            begun = [target for target in begun if target[0].end > end]
            start = end


class Gathered:
    """The bytes of some ranges of an archive, joined, from windows that parts share; then ``end``.

    It takes memory as its bytes come in.
    """

    def __init__(self, windows: Windows, ranges: Sequence[Range], end: bytes = b"") -> None:
        self._windows = windows
        self._ranges = ranges
        self._end = end
        self._gathering: _Gathering | None = None

    def expect(self) -> "_Gathering":
        """Begin to collect bytes from windows that are read for other parts too."""
        self.drop()
        self._gathering = _Gathering(self._windows, self._ranges)
        self._windows.expect(self._gathering)
        return self._gathering

    def drop(self) -> None:
        """Release the memory; the bytes are not needed."""
        if self._gathering:
            self._windows.forget(self._gathering)
            self._gathering = None

    def read(self) -> bytearray:
        """The bytes; reads those that are still missing.

        Raises:
            Exception: if a window cannot be read.
        """
        gathering = self._gathering or self.expect()
        self._windows.fill(gathering)
        self.drop()
        content = bytearray(gathering.buffer)
        content += self._end
        return content


_Target = tuple[Range, memoryview]
"""A range of a window, and the buffer of that size for its bytes."""


class _Gathering:
    """The bytes received of some ranges, for one attempt at sending them.

    Each attempt has its own, because a thread may still write for an attempt that was dropped.

    Attributes:
        places: by number of a window: the ranges that it needs of it, and their places in
            ``buffer``.
        end: of the last range.
        filled: numbers of windows whose bytes are in place.
        buffer: for all ranges together.
    """

    def __init__(self, windows: Windows, ranges: Sequence[Range]) -> None:
        self.places: defaultdict[int, list[tuple[Range, int]]] = defaultdict(list)
        self.end = max((found.end for found in ranges), default=0)
        self.filled: set[int] = set()
        self._size = 0
        for number, found in windows.cut(ranges):
            self.places[number].append((found, self._size))
            self._size += found.size

    @cached_property
    def buffer(self) -> memoryview:
        # Mapped: a page takes memory only once it is written to.
        return memoryview(mmap.mmap(-1, self._size or 1))[: self._size]

    def targets(self, number: int) -> list[_Target]:
        """The ranges of a window and the buffers for their bytes."""
        return [
            (found, self.buffer[place : place + found.size]) for found, place in self.places[number]
        ]
