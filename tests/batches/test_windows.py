import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitter.batches.windows import Gathered, Range, Windows, windows_over

DATA = random.Random(1).randbytes(1000)
ranges = st.lists(
    st.builds(
        lambda start, size: Range(start, start + size), st.integers(0, 900), st.integers(1, 99)
    ),
    min_size=1,
    max_size=20,
)


def bytes_of(found: list[Range]) -> bytes:
    return b"".join(DATA[one.start : one.end] for one in found)


def read(start: int, length: int) -> Iterator[bytes]:
    """Yield pieces, as a connection does."""
    for at in range(start, start + length, 7):
        yield DATA[at : min(at + 7, start + length)]


def counting(reads: Counter[int]) -> Callable[[int, int], Iterator[bytes]]:
    """``read`` that counts its calls by their first byte."""

    def counted(start: int, length: int) -> Iterator[bytes]:
        reads[start] += 1
        return read(start, length)

    return counted


def gathered(windows: Windows, found: Sequence[Range]) -> bytes:
    part = Gathered(windows, found)
    part.expect()
    return bytes(part.read())


@given(ranges, st.integers(1, 300), st.integers(0, 100))
def test_windows_cover_all_ranges(found: list[Range], size: int, max_gap: int) -> None:
    windows = list(windows_over(found, size, max_gap))
    assert all(0 < window.size <= size for window in windows)
    assert all(one.end <= other.start for one, other in pairwise(windows))
    covered = {place for window in windows for place in range(window.start, window.end)}
    wanted = {place for one in found for place in range(one.start, one.end)}
    assert wanted <= covered
    if not max_gap:
        assert wanted == covered
    assert gathered(Windows(windows, 1, read), found) == bytes_of(found)


@given(st.lists(ranges, min_size=1, max_size=6), st.integers(1, 300))
def test_parts_of_any_ranges_get_their_bytes_from_windows_read_once(
    parts: list[list[Range]], size: int
) -> None:
    reads: Counter[int] = Counter()
    windows = Windows(
        list(windows_over(chain.from_iterable(parts), size, 0)), len(parts), counting(reads)
    )
    waiting = [Gathered(windows, found) for found in parts]
    for part in waiting:
        part.expect()
    for part, found in zip(waiting, parts, strict=True):
        assert part.read() == bytes_of(found)
    assert set(reads.values()) == {1}


def test_threads_that_need_the_same_windows_read_each_once() -> None:
    reads: Counter[int] = Counter()
    barrier = threading.Barrier(4)
    windows = Windows([Range(at, at + 100) for at in range(0, 1000, 100)], 4, counting(reads))
    parts = [Gathered(windows, [Range(number, number + 900)]) for number in range(4)]
    for part in parts:
        part.expect()

    def is_right(number: int) -> bool:
        barrier.wait()
        return parts[number].read() == DATA[number : number + 900]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(is_right, range(4)))
    assert set(reads.values()) == {1}


def test_a_failed_read_fails_only_its_own_thread() -> None:
    begun, fail = threading.Event(), threading.Event()
    attempts: list[int] = []

    def failing_once(start: int, length: int) -> Iterator[bytes]:
        attempts.append(start)
        if len(attempts) == 1:
            yield DATA[start : start + 20]
            begun.set()
            fail.wait()
            raise ConnectionResetError
        yield from read(start, length)

    windows = Windows([Range(0, 100)], 2, failing_once)
    failing, other = Gathered(windows, [Range(5, 50)]), Gathered(windows, [Range(10, 60)])
    for part in (failing, other):
        part.expect()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(failing.read)
        begun.wait()
        second = pool.submit(other.read)
        fail.set()
        with pytest.raises(ConnectionResetError):
            first.result()
        assert second.result() == DATA[10:60]
    failing.expect()  # as a part that is sent again
    assert failing.read() == DATA[5:50]


def test_a_dropped_part_receives_no_bytes() -> None:
    reads: Counter[int] = Counter()
    windows = Windows([Range(0, 100)], 2, counting(reads))
    dropped, other = Gathered(windows, [Range(0, 50)]), Gathered(windows, [Range(20, 90)])
    for part in (dropped, other):
        part.expect()
    dropped.drop()
    assert other.read() == DATA[20:90]
    dropped.expect()
    assert dropped.read() == DATA[:50]
    assert reads == {0: 2}


def test_the_number_of_incomplete_parts_in_memory_is_limited() -> None:
    reads: Counter[int] = Counter()
    windows = Windows([Range(0, 100)], 2, counting(reads))
    parts = [Gathered(windows, [Range(0, end)]) for end in (90, 80, 70)]
    for part in parts:
        part.expect()
    assert parts[0].read() == DATA[:90]  # and with it the one that ends first
    assert parts[2].read() == DATA[:70]
    assert reads == {0: 1}
    assert parts[1].read() == DATA[:80]
    assert reads == {0: 2}


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="only Linux's /proc tells how much of a process is in memory",
)
def test_a_part_takes_memory_as_its_bytes_come_in() -> None:
    pages = 1000
    content = bytes(range(256)) * 16
    windows = Windows(
        [Range(at * 4096, (at + 1) * 4096) for at in range(pages)], 2, lambda *_: iter([content])
    )
    part = Gathered(windows, [Range(0, pages * 4096)])
    other = Gathered(windows, [Range(0, 4096)])
    for each in (part, other):
        each.expect()
    before = resident()
    other.read()
    assert resident() - before < pages * 4096 // 2


def resident() -> int:
    """Bytes of this process that are in memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
