"""Ends the process or the container of a run that was marked crashed.

A process that hangs would keep its own retry from starting: Prefect's runner does not start a run
whose process it still holds.
"""

import os
from contextlib import suppress
from datetime import datetime, timedelta

import psutil
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from prefect.client.schemas.objects import FlowRun

from blocks.saved import Aws
from flows.run_page.progress import Logger

TIME_TO_TERMINATE = 5
"""Seconds between SIGTERM and SIGKILL."""

OVERDUE = timedelta(seconds=60)
"""Time after a run's scheduled start at which no earlier attempt can still be ending."""

RUN_ID = "PREFECT__FLOW_RUN_ID"
"""The environment variable that Prefect gives to the process of a run."""


def machine_load() -> float:
    """Runnable processes per processor of this machine, over the last minute."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def end_run(run: FlowRun, logger: Logger) -> None:
    """End the processes of a run on this machine, or its ECS task."""
    ended = end_processes(run)
    if ended:
        logger.warning(
            "%s: %d of its processes were still there and have been ended", run.name, ended
        )
    # As prefect-aws notes it: the ARNs of the cluster and of the task.
    cluster, _, task = (run.infrastructure_pid or "").partition("::")
    if task.startswith("arn:"):
        try:
            ecs = Aws().client("ecs", Config(), region=task.split(":")[3])
            ecs.stop_task(cluster=cluster, task=task, reason="Its run was marked crashed")
        except (ClientError, BotoCoreError) as error:
            logger.warning("%s: its ECS task was not stopped, stop it by hand: %s", run.name, error)


def end_leftovers(run: FlowRun, now: datetime, logger: Logger) -> None:
    """End the processes of an earlier attempt that keep a run from starting on this machine.

    Args:
        now: the time at Prefect's API.
    """
    due = run.next_scheduled_start_time
    if not run.work_pool_name and due and now - due > OVERDUE:
        end_run(run, logger)


def end_processes(run: FlowRun) -> int:
    """Send SIGTERM, and SIGKILL after 5 s, to a run's processes; returns how many there were."""
    found = [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get(RUN_ID) == str(run.id)
    ]
    for process in found:
        with suppress(psutil.Error):  # it has ended meanwhile
            process.terminate()
    _, alive = psutil.wait_procs(found, timeout=TIME_TO_TERMINATE)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    return len(found)
