import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress

import pytest

from splitter.archives.watermark import COMPLETE, StoppedError, Watermark


def test_a_thread_waits_for_the_bytes_that_it_needs() -> None:
    mark = Watermark()
    with ThreadPoolExecutor() as pool:
        needed = [pool.submit(mark.wait_for, position) for position in (10, 20)]
        mark.advance(10)
        needed[0].result(10)
        assert not needed[1].done()
        mark.advance(5)  # a repeated step takes nothing back
        mark.wait_for(10)
        mark.advance(30)
        needed[1].result(10)


def test_an_incomplete_file_fails_only_readers_of_its_missing_part() -> None:
    mark = Watermark()
    with ThreadPoolExecutor() as pool:
        needed = [pool.submit(mark.wait_for, 20), pool.submit(mark.wait_for)]
        mark.advance(10)
        mark.stop()
        for each in needed:
            assert isinstance(each.exception(10), StoppedError)
    mark.wait_for(10)
    with pytest.raises(StoppedError):
        mark.advance(20)


def test_all_bytes_are_not_yet_a_complete_file() -> None:
    mark = Watermark()
    mark.advance(2**60)
    with ThreadPoolExecutor() as pool:
        complete = pool.submit(mark.wait_for)
        assert not complete.done()
        mark.finish()
        complete.result(10)
    mark.stop()
    mark.wait_for()
    mark.advance(1)


@pytest.mark.parametrize("fails", [False, True])
def test_an_error_in_the_block_stops_it(fails: bool) -> None:
    mark = Watermark()
    with suppress(ValueError), mark:
        if fails:
            raise ValueError
    with pytest.raises(StoppedError) if fails else nullcontext():
        mark.advance(1)


def test_a_complete_file_is_complete_in_another_process_too() -> None:
    pickle.loads(pickle.dumps(COMPLETE)).wait_for()
