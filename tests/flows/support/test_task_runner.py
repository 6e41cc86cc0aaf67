"""Batches are made in this process or on other machines."""

import pickle

from prefect.task_runners import ThreadPoolTaskRunner

from flows.support.task_runner import UploadPool, task_runner


def test_without_a_scheduler_batches_are_made_in_this_process() -> None:
    assert isinstance(task_runner(None), ThreadPoolTaskRunner)


def test_a_pool_that_travels_becomes_the_one_pool_of_its_process() -> None:
    steps: list[int] = []
    here = UploadPool(steps.append)
    there, again = (pickle.loads(pickle.dumps(here)) for _ in range(2))
    assert there is again
    assert there is not here
    there.progress(1)  # tells nobody
    assert steps == []
    here.close()
