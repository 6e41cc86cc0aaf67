"""Ranges of an archive read by few requests: neighbours together, once for all who want them."""

import mmap
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
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
    """As few windows as cover ``ranges``, ascending, each of at most ``size`` bytes.

    Args:
        ranges: in any order; they may overlap.
        max_gap: between two ranges of a window, in bytes. It is read in vain.
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
    """Windows of an archive. What one holds goes, as it is read, to all who wait for it.

    So each is read once, by the first thread that needs it, and none is kept. A thread whose
    reading fails fails alone, for the others then read that window themselves.
    """

    def __init__(
        self, windows: Sequence[Range], most: int, read: Callable[[int, int], Iterator[bytes]]
    ) -> None:
        """
        Args:
            windows: ascending.
            most: parts that may have come in half, but for those that a thread is filling. Others
                have to wait for their turn, and what they missed is read again.
            read: gives so many bytes of the archive from a start on, piece by piece:
                ``read(start, length)``.
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
        """Have what is read from now on go to ``gathering``, where it belongs there."""
        with self._changed:
            for number in gathering.numbers:
                self._waiting[number].add(gathering)

    def forget(self, gathering: "_Gathering") -> None:
        """Have nothing go there any more, but for what is being read."""
        with self._changed:
            for number in gathering.numbers:
                self._waiting[number].discard(gathering)
            gathering.numbers.clear()
            self._begun.discard(gathering)

    def fill(self, gathering: "_Gathering") -> None:
        """Have all in place that ``gathering`` waits for.

        Raises:
            Exception: what reading a window raised.
        """
        numbers = sorted(gathering.numbers)
        for number in numbers:
            self._read_if_waiting(gathering, number)
        for number in numbers:  # what other threads were reading
            while not self._is_filled(gathering, number):
                self._read_if_waiting(gathering, number)

    def _is_filled(self, gathering: "_Gathering", number: int) -> bool:
        """Wait until the thread that reads a window has done so; False if it could not."""
        with self._changed:
            self._changed.wait_for(
                lambda: number in gathering.filled or gathering in self._waiting[number]
            )
            return number in gathering.filled

    def _read_if_waiting(self, gathering: "_Gathering", number: int) -> None:
        """Read a window for all who wait for it, unless another thread has begun to."""
        with self._changed:
            if gathering not in self._waiting[number]:
                return
            waiting = self._in_memory(gathering, self._waiting[number])
            self._waiting[number] -= waiting
            targets = [each.targets(number) for each in waiting]
        try:
            self._scatter(self._windows[number], chain.from_iterable(targets))
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
        """Those of ``waiting`` that have begun to take memory, or may: the first to be complete."""
        self._begun.add(gathering)
        for each in sorted(waiting, key=lambda one: one.end):
            if len(self._begun) < self._most:
                self._begun.add(each)
        return self._begun.intersection(waiting)

    def _scatter(self, window: Range, targets: "Iterable[_Target]") -> None:
        """Read a window, and put its bytes into each buffer that is for a range of it."""
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
    """Ranges of an archive, one after the other, gathered from windows whoever reads those.

    It takes memory as its bytes come in.
    """

    def __init__(self, windows: Windows, ranges: Sequence[Range]) -> None:
        self._windows = windows
        self._ranges = ranges
        self._gathering: _Gathering | None = None

    def expect(self) -> "_Gathering":
        """Begin to take what is read for others, as these bytes will be asked for, once."""
        self.drop()
        self._gathering = _Gathering(self._windows, self._ranges)
        self._windows.expect(self._gathering)
        return self._gathering

    def drop(self) -> None:
        """Give back the memory; the bytes will not be asked for."""
        if self._gathering:
            self._windows.forget(self._gathering)
            self._gathering = None

    def read(self) -> memoryview:
        """The bytes, of which those that are still missing are read.

        Raises:
            Exception: what reading a window raised.
        """
        gathering = self._gathering or self.expect()
        self._windows.fill(gathering)
        self.drop()
        return gathering.buffer


_Target = tuple[Range, memoryview]
"""A range of a window, and the buffer of that size that it is for."""


class _Gathering:
    """What has come in of some ranges, for one attempt at sending them.

    The next begins anew: a thread may still be writing for an attempt that was dropped.

    Attributes:
        numbers: of the windows that it needs.
        end: of the last range.
        filled: those of them whose bytes are in place.
        buffer: for all ranges together.
    """

    def __init__(self, windows: Windows, ranges: Sequence[Range]) -> None:
        self._windows = windows
        self._ranges = ranges
        self.numbers = {number for number, _ in windows.cut(ranges)}
        self.end = max((found.end for found in ranges), default=0)
        self.filled: set[int] = set()

    @cached_property
    def buffer(self) -> memoryview:
        size = sum(found.size for found in self._ranges)
        # Mapped, for a page of it takes memory only once something is written there.
        return memoryview(mmap.mmap(-1, size or 1))[:size]

    def targets(self, number: int) -> Sequence[_Target]:
        """Where the bytes of a window go."""
        return self._targets[number]

    @cached_property
    def _targets(self) -> Mapping[int, Sequence[_Target]]:
        targets: dict[int, list[_Target]] = defaultdict(list)
        rest = self.buffer
        for number, found in self._windows.cut(self._ranges):
            targets[number].append((found, rest[: found.size]))
            rest = rest[found.size :]
        return targets
