"""Keeps one listener of a deployment: a dead one starts again, the one that started last goes on.

``flows.serve`` calls ``begin`` and ``keep_one``, the listener itself ``is_taken_over``.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import Abort
from prefect.logging import get_logger, get_run_logger
from prefect.states import AwaitingRetry

from flows.listening.clock import ServerClock
from flows.listening.decision import TIME_TO_CANCEL, time_to_start
from flows.listening.processes import end_leftovers, end_run, machine_load
from flows.listening.recovery import force_cancelled
from flows.support.attempt import is_superseded
from flows.support.outage import FEW_RETRIES, waits_for_prefect
from flows.support.prefect_texts import SERVICE_STOPPED

log = get_logger("serve")

UNFINISHED = set(StateType) - TERMINAL_STATES

SECONDS_BETWEEN_SIGNS = 30
"""Between two signs of life that a listener sends over HTTP."""

NO_SIGN = timedelta(seconds=4 * SECONDS_BETWEEN_SIGNS)
"""Time without a sign of life after which a listener counts as dead."""

FIRST_DELAY = timedelta(seconds=10)
"""Before a listener that failed starts again; doubled with each further time within RECENTLY."""

LONGEST_DELAY = timedelta(minutes=5)

RECENTLY = timedelta(hours=1)


@contextmanager
def shows_life(run: UUID) -> Iterator[None]:
    """Change a run in Prefect every half minute until the end of the block.

    The change goes over HTTP, so it arrives also where a proxy refuses WebSockets.
    """
    is_over = threading.Event()

    def show() -> None:
        with waits_for_prefect(FEW_RETRIES), get_client(sync_client=True) as prefect:
            while not is_over.wait(SECONDS_BETWEEN_SIGNS):
                with suppress(Exception):  # while Prefect is away nobody is judged
                    prefect.update_flow_run_labels(run, {"biospex.listens": time.time()})

    threading.Thread(target=show, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def is_dead(run: FlowRun, clock: ServerClock) -> bool:
    """Whether a listener gives no sign of life, or was taken by a service but not started."""
    if run.state is None:
        return False
    if run.state.is_pending():
        limit = time_to_start(bool(run.work_pool_name), machine_load())
        return clock.elapsed(run.state.timestamp) > limit
    # Changes are noticed here: the time of one is by the clock of Prefect's database.
    return run.state.is_running() and clock.unchanged(run.id, (run.updated, run.labels)) > NO_SIGN


def is_taken_over(prefect: SyncPrefectClient, clock: ServerClock) -> bool:
    """Whether a listener that started later is running; ends the runs of dead ones.

    Raises:
        Abort: if the current run was suspended, cancelled or started again, so that its state
            belongs to another process.
    """
    here = prefect.read_flow_run(UUID(runtime.flow_run.id))
    if is_superseded(here):
        raise Abort("another process owns the state of this run")
    if not here.deployment_id:
        return False
    for run in listeners(prefect, here.deployment_id, {StateType.RUNNING, StateType.PENDING}):
        if run.id != here.id and is_dead(run, clock):
            get_run_logger().warning("%s gave no sign of life; this run takes over", run.name)
            force_cancelled(prefect, run, "Died; another listener has taken over")
        elif is_later(run, here):
            return True
    return False


def is_later(run: FlowRun, here: FlowRun) -> bool:
    """Whether a run's attempt began after another's; ``start_time`` is the first attempt's."""
    if run.state is None or here.state is None:
        return False
    return run.state.is_running() and run.state.timestamp > here.state.timestamp


def begin(prefect: SyncPrefectClient, deployment: UUID) -> None:
    """Restart the listener that an earlier service left unfinished, or create one.

    The same run starts again here, because a service that still has its process cannot start it.
    """
    is_left = False
    for run in listeners(prefect, deployment, UNFINISHED):
        if run.state_type == StateType.CANCELLING:  # Prefect allows it no other state
            force_cancelled(prefect, run, "The service that ran it has ended")
        else:
            prefect.set_flow_run_state(run.id, AwaitingRetry(message="Served again"))
            is_left = True
    if not is_left:
        prefect.create_flow_run_from_deployment(deployment)


def keep_one(prefect: SyncPrefectClient, deployment: UUID, clock: ServerClock) -> None:
    """Restart a listener that has ended or died, unless a person cancelled it."""
    unfinished = listeners(prefect, deployment, UNFINISHED)
    for run in unfinished:
        if run.state is None:
            continue
        if run.state.is_cancelling() and clock.elapsed(run.state.timestamp) > TIME_TO_CANCEL:
            force_cancelled(prefect, run, "Cancelled, but nothing stopped it")
            end_run(run, log)
        elif is_dead(run, clock):
            log.warning("%s is dead and starts again", run.name)
            schedule_restart(prefect, run.id, "It died")
            end_run(run, log)
        else:
            end_leftovers(run, clock.now(), log)
    if unfinished:
        return
    last = next(iter(listeners(prefect, deployment, TERMINAL_STATES)), None)
    state = last.state if last else None
    if last is None or state is None or state.is_completed():
        log.warning("No listener is running; another one starts")
        prefect.create_flow_run_from_deployment(deployment)
    elif not state.is_cancelled() or state.message == SERVICE_STOPPED:
        log.warning("%s ended %s and starts again: %s", last.name, state.name, state.message)
        schedule_restart(prefect, last.id, f"It ended {state.name}: {state.message}")


def listeners(prefect: SyncPrefectClient, deployment: UUID, kinds: set[StateType]) -> list[FlowRun]:
    """The runs of a deployment in some kinds of state, the last to end first."""
    return prefect.read_flow_runs(
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [deployment]}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": list(kinds)}}}),
        sort=FlowRunSort.END_TIME_DESC,
        limit=20,
    )


def schedule_restart(prefect: SyncPrefectClient, run: UUID, message: str) -> None:
    """Start a listener's run again, after a delay if it has failed."""
    when = datetime.now(UTC) + restart_delay(prefect.read_flow_run_states(run))
    prefect.set_flow_run_state(run, AwaitingRetry(scheduled_time=when, message=message))


def restart_delay(states: Sequence[State[Any]]) -> timedelta:
    """The delay before a run starts again that has had these states; none if it did not fail.

    Their times are compared with each other only, as this machine's clock may be wrong.
    """
    ordered = sorted(states, key=lambda state: state.timestamp)
    ordered = [state for state in ordered if not state.is_scheduled()]
    if not ordered or not has_failed(ordered[-1]):
        return timedelta()
    began = ordered[-1].timestamp - RECENTLY
    failures = sum(has_failed(state) and state.timestamp > began for state in ordered)
    doubled: int = 2 ** min(failures - 1, 10)  # a timedelta has a limit
    return min(FIRST_DELAY * doubled, LONGEST_DELAY)


def has_failed(state: State[Any]) -> bool:
    return state.is_failed() or state.is_crashed()
