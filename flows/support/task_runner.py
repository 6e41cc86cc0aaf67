"""Runs the batches of an export in this process or on the workers of a Dask cluster."""

from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from splitter.batches.assembly import PARALLEL_BATCHES


def task_runner(scheduler: str | None = None) -> TaskRunner[Any]:
    """The task runner of the batches.

    Args:
        scheduler: address of a Dask scheduler, ``tcp://host:8786``; None for this process. The
            cluster's workers need this code, its environment, and the file that holds the images.
    """
    if scheduler is None:
        # A task only waits while threads send its parts.
        return ThreadPoolTaskRunner(max_workers=PARALLEL_BATCHES)
    from prefect_dask.task_runners import DaskTaskRunner  # takes a second to import

    return DaskTaskRunner(address=scheduler)
