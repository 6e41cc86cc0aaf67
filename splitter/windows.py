"""Ranges of an archive read by few requests: neighbours together, once for all who want them."""

import mmap
from bisect import bisect_right
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock


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
    """Windows of an archive, read when the first thread wants them and kept for the others.

    Threads that want the same windows share the reading of them: each reads one that nobody has
    begun. A window that could not be read is read again by whoever else wants it, so a thread fails
    by its own requests only.
    """

    def __init__(
        self,
        windows: Sequence[Range],
        most: int,
        read_into: Callable[[int, memoryview], None],
    ) -> None:
        """
        Args:
            windows: ascending.
            most: windows in memory, but for those that a thread is copying from. One that is
                wanted again after it has been dropped is read again.
            read_into: fills a buffer with bytes of the archive, from a start on.
        """
        self._windows = windows
        self._starts = [window.start for window in windows]
        self._most = most
        self._read_into = read_into
        self._lock = Lock()
        self._found: OrderedDict[int, Future[memoryview]] = OrderedDict()
        self._expected: Counter[int] = Counter()

    def expect(self, ranges: Sequence[Range]) -> None:
        """Say that ``ranges`` will be copied once; a window goes when all have copied from it."""
        self._expected.update({number for found in ranges for number in self._over(found)})

    def copy(self, ranges: Sequence[Range], target: memoryview) -> None:
        """Put the bytes of ``ranges``, one after the other, into ``target``.

        Raises:
            Exception: what reading a window raised.
        """
        pieces: dict[int, list[tuple[int, memoryview]]] = defaultdict(list)
        for found in ranges:
            for number in self._over(found):
                window = self._windows[number]
                start, end = max(found.start, window.start), min(found.end, window.end)
                pieces[number].append((start - window.start, target[: end - start]))
                target = target[end - start :]
        others = []
        for number in sorted(pieces):
            future, mine = self._claim(number)
            if mine:
                _copy(self._fill(number, future), pieces[number])
            elif future.done():
                _copy(self._settled(number, future), pieces[number])
            else:
                others.append((number, future))
        for number, future in others:
            _copy(self._settled(number, future), pieces[number])
        with self._lock:
            self._expected.subtract(pieces.keys())
            for number in pieces:
                if self._expected[number] == 0:
                    self._found.pop(number, None)

    def _over(self, found: Range) -> range:
        """The numbers of the windows that hold bytes of a range."""
        first = bisect_right(self._starts, found.start) - 1
        return range(first, bisect_right(self._starts, found.end - 1))

    def _claim(self, number: int) -> tuple[Future[memoryview], bool]:
        """What becomes a window's bytes, and whether it is the caller who has to read them."""
        with self._lock:
            known = self._found.get(number)
            future = known or Future()
            self._found[number] = future
            self._found.move_to_end(number)
            if len(self._found) > self._most:
                self._found.popitem(last=False)
            return future, not known

    def _fill(self, number: int, future: "Future[memoryview]") -> memoryview:
        window = self._windows[number]
        # Mapped: what many threads give back to malloc, it does not always give back.
        content = memoryview(mmap.mmap(-1, window.size))
        try:
            self._read_into(window.start, content)
        except BaseException as error:
            with self._lock:
                if self._found.get(number) is future:
                    del self._found[number]
            future.set_exception(error)
            raise
        future.set_result(content)
        return content

    def _settled(self, number: int, future: "Future[memoryview]") -> memoryview:
        """A window's bytes, which another thread reads, or this one, where that fails."""
        while True:
            with suppress(Exception):
                return future.result()
            future, mine = self._claim(number)
            if mine:
                return self._fill(number, future)


def _copy(content: memoryview, pieces: Iterable[tuple[int, memoryview]]) -> None:
    """Fill each buffer with a window's bytes from its offset on."""
    for offset, buffer in pieces:
        buffer[:] = content[offset : offset + len(buffer)]
