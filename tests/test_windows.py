import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitter.windows import Range, Windows, windows_over

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


def read_into(start: int, buffer: memoryview) -> None:
    buffer[:] = DATA[start : start + len(buffer)]


@given(ranges, st.integers(1, 300), st.integers(0, 100), st.integers(1, 4))
def test_windows_cover_what_is_wanted_and_give_its_bytes(
    found: list[Range], size: int, max_gap: int, most: int
) -> None:
    windows = list(windows_over(found, size, max_gap))
    assert all(0 < window.size <= size for window in windows)
    assert all(one.end <= other.start for one, other in pairwise(windows))
    covered = {place for window in windows for place in range(window.start, window.end)}
    wanted = {place for one in found for place in range(one.start, one.end)}
    assert wanted <= covered
    if not max_gap:
        assert wanted == covered

    target = bytearray(sum(one.size for one in found))
    Windows(windows, most, read_into).copy(found, memoryview(target))
    assert target == bytes_of(found)


def test_threads_that_want_the_same_windows_read_each_once() -> None:
    reads: Counter[int] = Counter()
    barrier = threading.Barrier(4)

    def counted(start: int, buffer: memoryview) -> None:
        reads[start] += 1
        read_into(start, buffer)

    windows = Windows([Range(at, at + 100) for at in range(0, 1000, 100)], 10, counted)

    def copy(number: int) -> bool:
        target = bytearray(900)
        barrier.wait()
        windows.copy([Range(number, number + 900)], memoryview(target))
        return target == DATA[number : number + 900]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(copy, range(4)))
    assert set(reads.values()) == {1}


def test_a_window_that_cannot_be_read_fails_only_the_thread_that_tried() -> None:
    begun, fail = threading.Event(), threading.Event()
    attempts: list[int] = []

    def failing_once(start: int, buffer: memoryview) -> None:
        attempts.append(start)
        if len(attempts) == 1:
            begun.set()
            fail.wait()
            raise ConnectionResetError
        read_into(start, buffer)

    windows = Windows([Range(0, 100)], 1, failing_once)

    def copy() -> bytes:
        target = bytearray(50)
        windows.copy([Range(10, 60)], memoryview(target))
        return bytes(target)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(copy)
        begun.wait()
        second = pool.submit(copy)
        fail.set()
        with pytest.raises(ConnectionResetError):
            first.result()
        assert second.result() == DATA[10:60]
    assert copy() == DATA[10:60]
    assert attempts == [0, 0]


def test_a_window_is_dropped_when_all_that_was_expected_has_been_copied() -> None:
    reads: Counter[int] = Counter()

    def counted(start: int, buffer: memoryview) -> None:
        reads[start] += 1
        read_into(start, buffer)

    windows = Windows([Range(at, at + 100) for at in (0, 100, 200)], 2, counted)
    early, late = [Range(0, 50), Range(110, 150)], [Range(0, 40), Range(220, 230)]
    windows.expect(early)
    windows.expect(late)
    # The second has gone when the third comes, so that the first, read longer ago, need not go.
    for ranges in (early, late):
        windows.copy(ranges, memoryview(bytearray(sum(one.size for one in ranges))))
    assert reads == {0: 1, 100: 1, 200: 1}
    windows.copy(early, memoryview(bytearray(90)))  # a part that is sent again
    assert reads == {0: 2, 100: 2, 200: 1}
