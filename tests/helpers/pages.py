"""The artifacts on the page of a run."""

from typing import Any, cast
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact, State


def this_run(state: State[Any]) -> FlowRunFilter:
    """Return a filter for the run that ended in a state."""
    run_id = cast(UUID, state.state_details.flow_run_id)
    return FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))


def page_of(prefect: SyncPrefectClient, state: State[Any]) -> dict[str, Artifact]:
    """Return the artifacts of the run that ended in a state, by their keys."""
    found = prefect.read_artifacts(flow_run_filter=this_run(state))
    return {str(artifact.key): artifact for artifact in found}
