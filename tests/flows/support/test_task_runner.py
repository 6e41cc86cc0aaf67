"""Batches are made in this process or on other machines."""

from prefect.task_runners import ThreadPoolTaskRunner

from flows.support.task_runner import task_runner


def test_without_a_scheduler_batches_are_made_in_this_process() -> None:
    assert isinstance(task_runner(None), ThreadPoolTaskRunner)
