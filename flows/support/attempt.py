"""The attempts of the current run.

An attempt counts once its own code has begun; Prefect's ``run_count`` counts differently.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext, SyncClientContext
from prefect.exceptions import Abort
from prefect.logging import get_run_logger

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
    """Whether another process owns the current run, by its present state in Prefect.

    It was cancelled, suspended, marked crashed or started again.
    """
    return not is_running(run) or run.run_count > runtime.flow_run.run_count


def leave_if_superseded() -> None:
    """End this attempt without a state of its own if another attempt owns the run.

    So an attempt that was only slow, or unreachable, sends no second callback and does not
    overwrite the state of the attempt that goes on.

    Raises:
        Abort: if so; Prefect's engine then ends the process.
    """
    if not is_deployed():
        return
    # The run's own client, for a new one does not wait for a server that it never reached.
    with SyncClientContext.get_or_create() as context:
        run = context.client.read_flow_run(UUID(runtime.flow_run.id))
    if is_superseded(run):
        get_run_logger().warning("Run is %s; a newer attempt has taken over", run.state_name)
        raise Abort("a newer attempt has taken over")


def is_running(run: FlowRun) -> bool:
    return run.state_type == StateType.RUNNING


def is_deployed() -> bool:
    """Whether the current run has a deployment, and so may be tried again.

    Of a run without one, ``runtime.deployment.id`` asks the API each time.
    """
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)


def earlier_attempts() -> list[State[Any]]:
    """The ends of the current run's earlier attempts."""
    if not is_deployed():
        return []
    with get_client(sync_client=True) as prefect:
        return failed_attempts(prefect.read_flow_run_states(UUID(runtime.flow_run.id)))
