"""What Prefect knows of a run, and what the listener makes of it: observed, retried, ended.

A run is retried as itself, same id and same page, for it finds in S3 what earlier attempts have put
in place. An attempt counts once its own code has begun; Prefect's ``run_count`` counts otherwise.
"""

import os
import time
from collections.abc import Sequence
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
from prefect.context import FlowRunContext, SyncClientContext
from prefect.events.filters import EventFilter, EventOrder
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Crashed

from flows.support.artifacts import CALLBACK_KEY, callback_markdown, callback_title
from flows.support.decision import MISSED_HEARTBEATS, Retry, Run
from flows.support.markdown import plain
from splitter.messages import Failure, Result

FAILED = (StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)


def failed_attempts(states: Sequence[State[Any]]) -> list[State[Any]]:
    """The states in which attempts ended badly whose code had begun, in order."""
    ends = []
    is_begun = False
    for state in states:
        if state.is_running():
            is_begun = True
        elif state.type in FAILED and is_begun:
            ends.append(state)
            is_begun = False
    return ends


def is_superseded(run: FlowRun) -> bool:
    """Whether the current run, as Prefect has it now, is no longer this process's to go on with.

    It was cancelled, suspended, taken for dead or started again: another one answers for it.
    """
    return not is_running(run) or run.run_count > runtime.flow_run.run_count


def leave_if_superseded() -> None:
    """End this process, which says nothing more, if another one answers for its run.

    So an attempt that was only slow, or out of reach, does not send a second callback, nor put a
    state of its own over that of the attempt that goes on.
    """
    if not is_deployed():
        return
    # The run's own client, for a new one does not wait for a server that it never reached.
    with SyncClientContext.get_or_create() as context:
        run = context.client.read_flow_run(UUID(runtime.flow_run.id))
    if is_superseded(run):
        get_run_logger().warning("This run is %s, not this attempt's any more", run.state_name)
        os._exit(0)


def is_running(run: FlowRun) -> bool:
    return run.state_type == StateType.RUNNING


def is_deployed() -> bool:
    """Whether the current run has a deployment, and so may be tried again.

    Of a run without one, ``runtime.deployment.id`` asks the API each time.
    """
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)


def earlier_attempts() -> list[State[Any]]:
    """How the current run has ended so far, if it has been retried."""
    if not is_deployed():
        return []
    with get_client(sync_client=True) as prefect:
        return failed_attempts(prefect.read_flow_run_states(UUID(runtime.flow_run.id)))


def observe(prefect: SyncPrefectClient, run: FlowRun | None, reachable_since: float) -> Run | None:
    """What Prefect knows of a run; None if it has been deleted.

    Args:
        reachable_since: moment of ``time.monotonic()`` from which on Prefect could be reached;
            heartbeats before it may be lost.
    """
    if run is None or run.state is None:
        return None
    states = sorted(prefect.read_flow_run_states(run.id), key=lambda state: state.timestamp)
    waiting = states_since_it_ran(states) or [run.state]
    now = datetime.now(UTC)
    ends = [state for state in waiting if state.type in FAILED]
    has_run = len(waiting) < len(states)
    return Run(
        state=run.state,
        has_pool=bool(run.work_pool_name),
        is_answered=run.state.is_final() and callback_of(prefect, run) is not None,
        attempts=len(failed_attempts(states)),
        failed_starts=max(len(ends) - has_run, 0),  # the first of them ended the last attempt
        age=now - run.state.timestamp,
        waited=now - waiting[0].timestamp,
        missed_heartbeats=missed_heartbeats(prefect, run, reachable_since),
    )


def states_since_it_ran(states: Sequence[State[Any]]) -> Sequence[State[Any]]:
    """The states after the last in which a run ran; all, if it never did."""
    ran = [place for place, state in enumerate(states) if state.is_running()]
    return states[ran[-1] + 1 :] if ran else states


def retry(prefect: SyncPrefectClient, run: FlowRun, decision: Retry) -> None:
    """Schedule another attempt of a run that has ended."""
    when = datetime.now(UTC) + decision.delay
    prefect.set_flow_run_state(run.id, AwaitingRetry(scheduled_time=when, message=decision.reason))


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
            description=plain(callback_title(message)),
            data=callback_markdown(message),
        )
    )


def missed_heartbeats(prefect: SyncPrefectClient, run: FlowRun, reachable_since: float) -> float:
    """How many heartbeats a run that is said to be running owes; 0 where none are sent.

    Prefect sends a heartbeat event for each run, every PREFECT_FLOWS_HEARTBEAT_FREQUENCY seconds.
    Those of the time in which Prefect was away are lost, so they are not owed.
    """
    frequency = get_current_settings().flows.heartbeat_frequency
    if frequency is None or run.state is None or not run.state.is_running():
        return 0.0
    silence = min(
        (datetime.now(UTC) - run.state.timestamp).total_seconds(),
        time.monotonic() - reachable_since,
    )
    if silence < MISSED_HEARTBEATS * frequency:
        return 0.0
    heartbeats = EventFilter.model_validate(
        {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run.id}"]},
            "occurred": {"since": datetime.now(UTC) - timedelta(seconds=silence)},
            "order": EventOrder.DESC,
        }
    )
    for last in prefect.read_events(heartbeats, limit=1).events:
        silence = (datetime.now(UTC) - last.occurred).total_seconds()
    return silence / frequency


def mark_crashed(prefect: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    """Mark a run whose process is dead, or never was, as what it is."""
    prefect.set_flow_run_state(run.id, Crashed(message=reason), force=True)


def request_cancellation(prefect: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    """Have a run's process stopped by what started it: Prefect's runner or worker."""
    prefect.set_flow_run_state(run.id, Cancelling(message=reason))


def force_cancelled(prefect: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    """End a run that does not get going, or does not end."""
    prefect.set_flow_run_state(run.id, Cancelled(message=reason), force=True)
