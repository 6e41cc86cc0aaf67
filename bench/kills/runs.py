"""What Prefect knows about the runs of a round."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, State

from flows.run_page.artifacts import CALLBACK_KEY
from flows.support.attempt import failed_attempts
from flows.support.prefect_texts import SERVICE_STOPPED


class Runs:
    """The runs that a Prefect server has; those of earlier rounds are left out."""

    def __init__(self, prefect: SyncPrefectClient) -> None:
        self._prefect = prefect
        self._earlier: set[UUID] = set()
        self._listening: dict[UUID, bool] = {}
        self._names: dict[UUID, str] = {}

    def forget(self) -> None:
        """Leave out, from now on, the runs that there are."""
        self._earlier = {run.id for run in self._all()}

    def current(self) -> list[FlowRun]:
        return [run for run in self._all() if run.id not in self._earlier]

    def exports(self) -> list[FlowRun]:
        return [run for run in self.current() if not self.is_listener(run.id)]

    def listeners(self) -> list[FlowRun]:
        return [run for run in self.current() if self.is_listener(run.id)]

    def are_exports_taken(self) -> bool:
        """Whether a worker has taken an export that has not ended."""
        states = [run.state for run in self.exports()]
        return any(state and (state.is_pending() or state.is_running()) for state in states)

    def is_listener(self, run_id: UUID) -> bool:
        """Whether a run is the listener's; its name tells only once it runs."""
        if run_id not in self._listening:
            flow = self._prefect.read_flow_run(run_id).flow_id
            self._listening[run_id] = self._prefect.read_flow(flow).name == "listen"
        return self._listening[run_id]

    def name(self, run_id: UUID | None) -> str:
        """The role of a process."""
        if run_id is None:
            return "a service"
        if run_id not in self._names:
            name = self._prefect.read_flow_run(run_id).name
            if " " not in name:  # Prefect's own, until the run begins
                return name
            self._names[run_id] = name
        return self._names[run_id]

    def failures(self, run: FlowRun) -> list[State[Any]]:
        """The ends of a run's attempts that were not those of its service."""
        ends = failed_attempts(self._prefect.read_flow_run_states(run.id))
        return [end for end in ends if end.message != SERVICE_STOPPED]

    def noted(self, download: str) -> list[float]:
        """When callbacks of a download were noted."""
        ids = [run.id for run in self._of(download)]
        artifacts = self._prefect.read_artifacts(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)),
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[CALLBACK_KEY])),
        )
        return [artifact.created.timestamp() for artifact in artifacts if artifact.created]

    def story(self, download: str, killed: float | None) -> str:
        """The states of a download's run and the notes of its callback, in seconds to the kill."""
        start = killed or 0.0
        lines = []
        for run in self._of(download):
            states = self._prefect.read_flow_run_states(run.id)
            lines += [(state.timestamp.timestamp(), state.name or "") for state in states]
        lines += [(moment, "callback noted") for moment in self.noted(download)]
        return ", ".join(f"{name} {moment - start:+.3f}" for moment, name in sorted(lines))

    def _of(self, download: str) -> list[FlowRun]:
        return [run for run in self.current() if download_in(run.name) == download]

    def _all(self) -> Iterator[FlowRun]:
        offset = 0
        while found := self._prefect.read_flow_runs(limit=200, offset=offset):
            yield from found
            offset += len(found)


def download_in(name: str) -> str:
    """The download that the name of an export's run begins with."""
    return name.removeprefix("download ").partition(":")[0]
