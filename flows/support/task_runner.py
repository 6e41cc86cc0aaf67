"""Runs the batches of an export in this process or on the workers of a Dask cluster."""

from collections.abc import Callable
from functools import cache
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from splitter.batches.assembly import PARALLEL_BATCHES, PARALLEL_PARTS, PartPool


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


class UploadPool:
    """The threads that send the parts of batches, and the progress that they report.

    Attributes:
        timeout: the error of a batch whose requests timed out; no further batch begins.

    In another process, a pickled pool is that process's own pool, without progress.
    """

    def __init__(
        self,
        progress: Callable[[int], object],
        senders: int = PARALLEL_PARTS,
        may_appear: Callable[[], object] = lambda: None,
    ) -> None:
        """
        Args:
            senders: threads that send parts.
            may_appear: waits until batches may appear.
        """
        self.progress = progress
        self.may_appear = may_appear
        self.timeout: Exception | None = None
        self.pool = PartPool(senders)

    def __reduce__(self) -> Any:
        return _pool_of_this_process, ()

    def close(self) -> None:
        self.pool.close()


@cache
def _pool_of_this_process() -> UploadPool:
    return UploadPool(lambda _: None)
