"""What becomes of a run of create-batches that ended badly: another attempt, or the last word.

A run is resumed as itself, same id and same page, for it finds in S3 what earlier attempts have put
in place. What counts is how often it has ended badly; Prefect's own ``run_count`` leaves out the
attempts that died before they began.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import ArtifactSort
from prefect.events.filters import EventFilter
from prefect.flows import Flow
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Crashed

from flows.support.artifacts import CALLBACK_KEY, callback_markdown, callback_title
from splitter.errors import is_transient
from splitter.messages import Failure, Result
from splitter.settings import Settings

FIRST_DELAY = timedelta(seconds=15)
"""Before the second attempt; each further one waits four times as long."""

FAILED = (StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)

MISSED_HEARTBEATS = 3

SERVICE_STOPPED = "Runner is shutting down."
"""How Prefect's runner marks the runs that it cancels when it is stopped itself."""


def failed_attempts(prefect: SyncPrefectClient, run_id: UUID) -> list[State[Any]]:
    """The states in which a run has failed, crashed or been cancelled, in order."""
    return [state for state in prefect.read_flow_run_states(run_id) if state.type in FAILED]


def earlier_attempts() -> list[State[Any]]:
    """How the current run has ended so far, if it has been resumed or retried."""
    if not runtime.deployment.id:
        return []
    with get_client(sync_client=True) as prefect:
        return failed_attempts(prefect, UUID(runtime.flow_run.id))


def resume(prefect: SyncPrefectClient, run: FlowRun, reason: str) -> bool:
    """Schedule another attempt of a run that has ended; False if it has had MAX_ATTEMPTS."""
    ends = len(failed_attempts(prefect, run.id))
    if ends >= Settings.load().max_attempts:
        return False
    delay = FIRST_DELAY * 4 ** (ends - 1)
    prefect.set_flow_run_state(
        run.id, AwaitingRetry(scheduled_time=datetime.now(UTC) + delay, message=reason)
    )
    return True


def will_be_resumed(error: Exception) -> bool:
    """Whether ``error``, if it ends the current run, leads to another attempt."""
    if not runtime.deployment.id or not is_transient(error):
        return False
    with get_client(sync_client=True) as prefect:
        run = prefect.read_flow_run(UUID(runtime.flow_run.id))
        ends = len(failed_attempts(prefect, run.id)) + 1
        return ends < Settings.load().max_attempts and not has_called_back(prefect, run)


def retry_transient(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook of create-batches: a failure that can pass, or a crash, leads to another attempt.

    After a crash the runner calls it, the process being dead; so it needs nothing but its
    arguments, whose names Prefect asks for.
    """
    if not flow_run.deployment_id:
        return
    if state.is_failed() and not is_transient(state.result(raise_on_failure=False)):
        return
    with get_client(sync_client=True) as prefect:
        if not has_called_back(prefect, flow_run):
            resume(prefect, flow_run, f"Resumed after: {state.message}")


def has_called_back(prefect: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether a run that has ended sent its callback; one that completed certainly did."""
    return run.state_type == StateType.COMPLETED or callback_of(prefect, run) is not None


def callback_of(prefect: SyncPrefectClient, run: FlowRun) -> str | None:
    """The last callback that is noted on a run, as Markdown."""
    noted = prefect.read_artifacts(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[CALLBACK_KEY])),
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
            description=callback_title(message),
            data=callback_markdown(message),
        )
    )


def heartbeat_timed_out(prefect: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether a run that is said to be running has given no sign of life for too long.

    Prefect sends a heartbeat event for each run, every PREFECT_FLOWS_HEARTBEAT_FREQUENCY seconds.
    """
    frequency = get_current_settings().flows.heartbeat_frequency
    if frequency is None or run.state is None:
        return False
    since = datetime.now(UTC) - timedelta(seconds=MISSED_HEARTBEATS * frequency)
    if run.state.timestamp > since:
        return False
    heartbeats = EventFilter.model_validate(
        {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run.id}"]},
            "occurred": {"since": since},
        }
    )
    return not prefect.read_events(heartbeats, limit=1).events


def mark_crashed(prefect: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    """Mark a run whose process is dead, or never was, as what it is."""
    prefect.set_flow_run_state(run.id, Crashed(message=reason), force=True)


def interrupt(prefect: SyncPrefectClient, run: FlowRun) -> None:
    """Have a run's process stopped by what started it: Prefect's runner or worker."""
    prefect.set_flow_run_state(run.id, Cancelling(message="It took longer than RUN_TIMEOUT"))


def cancel(prefect: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    """End a run that does not get going."""
    prefect.set_flow_run_state(run.id, Cancelled(message=reason), force=True)
