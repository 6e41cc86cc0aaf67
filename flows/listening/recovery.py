"""Reads the facts about a run from Prefect, and notes its callback and its end there."""

from datetime import datetime, timedelta
from itertools import groupby, takewhile
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    DeploymentFilter,
    FlowRunFilter,
    WorkPoolFilter,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort
from prefect.states import Cancelled

from flows.listening.clock import ServerClock
from flows.listening.decision import Run
from flows.listening.heartbeats import Heartbeats
from flows.listening.processes import machine_load
from flows.run_page.artifacts import CALLBACK_KEY, callback_markdown, callback_title
from flows.run_page.markdown import plain
from flows.support.attempt import FAILED, failed_attempts
from splitter.messages import Failure, Result


def observe(
    prefect: SyncPrefectClient, run: FlowRun | None, heartbeats: Heartbeats, clock: ServerClock
) -> Run | None:
    """The facts about a run; None if it has been deleted."""
    if run is None or run.state is None:
        return None
    states = sorted(prefect.read_flow_run_states(run.id), key=lambda state: state.timestamp)
    is_running = run.state.is_running()
    # The latest first, back to the one in which it last ran.
    waiting = list(takewhile(lambda state: not state.is_running(), reversed(states))) or [run.state]
    # An end that two processes report, one after the other, is one.
    ends = sum(is_end for is_end, _ in groupby(waiting, lambda state: state.type in FAILED))
    has_run = len(waiting) < len(states)
    progress = None if is_running else last_progress(prefect, run, waiting[-1].timestamp)
    return Run(
        state=run.state,
        has_pool=bool(run.work_pool_name),
        is_answered=run.state.is_final() and callback_of(prefect, run) is not None,
        attempts=len(failed_attempts(states)),
        failed_starts=max(ends - has_run, 0),  # the first of them ended the last attempt
        age=clock.now() - run.state.timestamp if is_running else clock.elapsed(run.state.timestamp),
        stalled=clock.elapsed(progress) if progress else timedelta(),
        is_silent=heartbeats.have_stopped(run),
        load=machine_load(),
    )


def last_progress(prefect: SyncPrefectClient, run: FlowRun, since: datetime) -> datetime | None:
    """When another run of a run's pool, or else of its deployment, last ran; None if one runs now.

    Args:
        since: the earliest moment that counts.
    """
    beside = runs_beside(run)
    running = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.RUNNING]}}})
    if prefect.read_flow_runs(flow_run_filter=running, limit=1, **beside):
        return None
    others = {
        "id": {"not_any_": [run.id]},
        "start_time": {"is_null_": False},
        "end_time": {"after_": since},
    }
    ended = prefect.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(others),
        sort=FlowRunSort.END_TIME_DESC,
        limit=10,
        **beside,
    )
    # Prefect notes the end of a run that never began as its beginning, too.
    return next((one.end_time for one in ended if one.end_time != one.start_time), since)


def runs_beside(run: FlowRun) -> dict[str, Any]:
    """Filters for the runs of a run's pool, or else of its deployment."""
    if run.work_pool_name:
        pool = {"name": {"any_": [run.work_pool_name]}}
        return {"work_pool_filter": WorkPoolFilter.model_validate(pool)}
    deployment = {"id": {"any_": [run.deployment_id] if run.deployment_id else []}}
    return {"deployment_filter": DeploymentFilter.model_validate(deployment)}


def callback_of(prefect: SyncPrefectClient, run: FlowRun) -> str | None:
    """The last callback that is noted on a run, as Markdown."""
    noted = prefect.read_artifacts(
        flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run.id]}}),
        artifact_filter=ArtifactFilter.model_validate({"key": {"any_": [CALLBACK_KEY]}}),
        sort=ArtifactSort.CREATED_DESC,
    )
    return str(noted[0].data) if noted else None


def note_callback(prefect: SyncPrefectClient, run: FlowRun, message: Result | Failure) -> None:
    """Note on a run that another process has sent its callback."""
    prefect.create_artifact(
        ArtifactCreate(
            key=CALLBACK_KEY,
            type="markdown",
            flow_run_id=run.id,
            description=plain(callback_title(message)),
            data=callback_markdown(message),
        )
    )


def force_cancelled(prefect: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    """End a run that does not start or does not end."""
    prefect.set_flow_run_state(run.id, Cancelled(message=reason), force=True)
