"""Reads the facts about a run from Prefect, and sets the states that the listener decides on.

A run is retried as itself, with the same id and page; it finds the batches of earlier attempts in
S3.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    DeploymentFilter,
    FlowRunFilter,
    WorkPoolFilter,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Crashed

from flows.listening.clock import ServerClock
from flows.listening.decision import Retry, Run
from flows.listening.heartbeats import Heartbeats
from flows.listening.processes import machine_load
from flows.run_page.artifacts import CALLBACK_KEY, callback_markdown, callback_title
from flows.run_page.markdown import plain
from flows.support.attempt import FAILED, failed_attempts
from splitter.messages import Failure, Result

LARGEST_SPREAD = 6
"""Seconds over which the next attempts of several runs are spread."""


def observe(
    prefect: SyncPrefectClient, run: FlowRun | None, heartbeats: Heartbeats, clock: ServerClock
) -> Run | None:
    """The facts about a run; None if it has been deleted."""
    if run is None or run.state is None:
        return None
    states = sorted(prefect.read_flow_run_states(run.id), key=lambda state: state.timestamp)
    waiting = states_since_it_ran(states) or [run.state]
    is_running = run.state.is_running()
    others_run = not is_running and do_others_run(prefect, run)
    progress = waiting[0].timestamp
    if not is_running and not others_run:
        progress = max(progress, last_end_of_others(prefect, run) or progress)
    ends = count_ends(waiting)
    has_run = len(waiting) < len(states)
    return Run(
        state=run.state,
        has_pool=bool(run.work_pool_name),
        is_answered=run.state.is_final() and callback_of(prefect, run) is not None,
        attempts=len(failed_attempts(states)),
        failed_starts=max(ends - has_run, 0),  # the first of them ended the last attempt
        age=clock.now() - run.state.timestamp if is_running else clock.elapsed(run.state.timestamp),
        waited=clock.elapsed(waiting[0].timestamp),
        stalled=timedelta() if others_run else clock.elapsed(progress),
        missed_heartbeats=heartbeats.missed(run),
        others_run=others_run,
        load=machine_load(),
    )


def count_ends(states: Sequence[State[Any]]) -> int:
    """How often a run ended badly; an end that two processes report, one after the other, once."""
    kinds = [state.type in FAILED for state in states]
    return sum(
        is_end and not was_end for is_end, was_end in zip(kinds, [False, *kinds], strict=False)
    )


def do_others_run(prefect: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether other runs of a run's pool, or else of its deployment, are running."""
    running = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.RUNNING]}}})
    return bool(prefect.read_flow_runs(flow_run_filter=running, limit=1, **beside(run)))


def last_end_of_others(prefect: SyncPrefectClient, run: FlowRun) -> datetime | None:
    """When another run of a run's pool, or else of its deployment, last ended that had begun."""
    others = {
        "id": {"not_any_": [run.id]},
        "start_time": {"is_null_": False},
        "end_time": {"is_null_": False},
    }
    ended = prefect.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(others),
        sort=FlowRunSort.END_TIME_DESC,
        limit=10,
        **beside(run),
    )
    # Prefect notes the end of a run that never began as its beginning, too.
    return next((one.end_time for one in ended if one.end_time != one.start_time), None)


def beside(run: FlowRun) -> dict[str, Any]:
    """Filters for the runs of a run's pool, or else of its deployment."""
    if run.work_pool_name:
        pool = {"name": {"any_": [run.work_pool_name]}}
        return {"work_pool_filter": WorkPoolFilter.model_validate(pool)}
    deployment = {"id": {"any_": [run.deployment_id] if run.deployment_id else []}}
    return {"deployment_filter": DeploymentFilter.model_validate(deployment)}


def runs_of(
    prefect: SyncPrefectClient,
    deployment: UUID,
    kinds: Sequence[StateType],
    sort: FlowRunSort = FlowRunSort.EXPECTED_START_TIME_DESC,
) -> list[FlowRun]:
    """The runs of a deployment in some kinds of state, the latest first."""
    return prefect.read_flow_runs(
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [deployment]}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": kinds}}}),
        sort=sort,
        limit=20,
    )


def states_since_it_ran(states: Sequence[State[Any]]) -> Sequence[State[Any]]:
    """The states after the last in which a run ran; all, if it never did."""
    ran = [place for place, state in enumerate(states) if state.is_running()]
    return states[ran[-1] + 1 :] if ran else states


def retry(prefect: SyncPrefectClient, run: FlowRun, decision: Retry, now: datetime) -> None:
    """Schedule another attempt of a run that has ended."""
    # Runs that ended together, with their service, do not start together.
    when = now + decision.delay + timedelta(seconds=run.id.int % LARGEST_SPREAD)
    prefect.set_flow_run_state(run.id, AwaitingRetry(scheduled_time=when, message=decision.reason))


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


def mark_crashed(prefect: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    """Mark a run crashed whose process is dead, hangs, or never started."""
    prefect.set_flow_run_state(run.id, Crashed(message=reason), force=True)


def request_cancellation(prefect: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    """Ask Prefect's runner or worker to stop the process of a run."""
    prefect.set_flow_run_state(run.id, Cancelling(message=reason))


def force_cancelled(prefect: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    """End a run that does not start or does not end."""
    prefect.set_flow_run_state(run.id, Cancelled(message=reason), force=True)
