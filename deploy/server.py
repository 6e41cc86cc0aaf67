"""Prefect's side of a deployment: its state, the checks of it, and the changes to it."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from prefect.automations import Automation, EventTrigger, Posture, SendNotification
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType, WorkPool
from prefect.exceptions import ObjectNotFound
from prefect_aws import AwsCredentials

from blocks.saved import BLOCK_NAME
from blocks.workspace import Workspace
from deploy.answers import ENVIRONMENTS, Case
from deploy.job_template import EFS_PATH
from deploy.preflight import Finding, check, note, stop
from flows.listening.heartbeats import websocket_problem

POOLS = {"splitter": "biospex-ecs", "listener": "biospex-ecs-listener"}  # prefect.yaml names both


@dataclass(frozen=True)
class State:
    """The things in Prefect that a deployment makes.

    Attributes:
        owner: the environment of the deployment create-batches, or empty.
        listener: scheduled, running, or empty. A pending one does not count, as its task may never
            start; one more does no harm, as the later of two takes over.
    """

    pools: dict[str, WorkPool] = field(default_factory=dict)
    owner: str = ""
    has_blocks: bool = False
    has_notice: bool = False
    listener: str = ""


def _found(read: Callable[..., Any], *names: str) -> Any:
    with suppress(ObjectNotFound):
        return read(*names)


def read_state(environment: str) -> State:
    with get_client(sync_client=True) as prefect:
        found = {name: _found(prefect.read_work_pool, name) for name in POOLS.values()}
        made = _found(prefect.read_deployment_by_name, "create-batches/create-batches")
        block = _found(prefect.read_block_document_by_name, BLOCK_NAME, "biospex-workspace")
        has_notice = bool(prefect.read_automations_by_name(notice_name(environment)))
    pools = {name: pool for name, pool in found.items() if pool}
    owner = "".join(tag for tag in made.tags if tag in ENVIRONMENTS) if made else ""
    states = {run.state_type for run in listeners()}
    listener = "scheduled" if StateType.SCHEDULED in states else "running" if states else ""
    return State(pools, owner, bool(block), has_notice, listener)


def listeners() -> list[FlowRun]:
    """The listener's running and scheduled runs."""
    of_flow = FlowFilter.model_validate({"name": {"any_": ["listen"]}})
    states = {"state": {"type": {"any_": ["RUNNING", "SCHEDULED"]}}}
    in_state = FlowRunFilter.model_validate(states)
    with get_client(sync_client=True) as prefect:
        found = prefect.read_flow_runs(flow_filter=of_flow, flow_run_filter=in_state)
    return [run for run in found if run.deployment_id]


# -- checks


def is_open(url: str) -> bool:
    """Whether the API answers without authentication.

    Raises:
        HTTPError: if it does not answer, or not as Prefect's API does.
    """
    answer = httpx.post(f"{url}/work_pools/filter", json={}, timeout=20)
    if answer.status_code in (401, 403):
        return False
    answer.raise_for_status()
    return True


def check_api(url: str) -> Iterator[Finding]:
    """Tasks on ECS can reach the API, and it needs authentication."""
    option, host = "(--open-api: go on all the same)", str(urlsplit(url).hostname)
    if host in ("localhost", "0.0.0.0", "::1") or host.startswith("127."):  # noqa: S104
        yield stop(
            f"{url} is this machine: tasks on ECS cannot reach it. Give an address that they can "
            f"reach; docs/where-prefect-runs.md lists the ways {option}."
        )
    try:
        if is_open(url):
            yield stop(
                f"{url} answers anybody, and anybody who reaches it can run code in the tasks' "
                "roles. Set PREFECT_SERVER_API_AUTH_STRING at the server and "
                f"PREFECT_API_AUTH_STRING here {option}."
            )
    except httpx.HTTPError as error:
        yield stop(f"{url} does not answer: {error}")


def check_things(state: State, case: Case) -> Iterator[Finding]:
    """Refuses the things of another environment, which this one would replace."""
    for name, pool in state.pools.items():
        if pool.type != "ecs":
            yield stop(f"The work pool {name} is of the type {pool.type}, not ecs.")
    if state.owner not in ("", case.environment):
        yield stop(
            f"The deployment create-batches belongs to {state.owner}: each environment needs a "
            "Prefect API of its own."
        )
    if block := case.answers.get("NOTIFICATION_BLOCK"):
        with get_client(sync_client=True) as prefect:
            if not _found(prefect.read_block_document_by_name, *reversed(block.split("/"))):
                yield stop(f"NOTIFICATION_BLOCK={block!r}: create the block in the Prefect UI.")
    if problem := websocket_problem():  # a proxy may refuse it
        yield note(problem)


@check("PREFECT_API_URL")
def prefect_api(case: Case) -> Iterator[Finding]:
    url = case.answers["PREFECT_API_URL"]
    found = [] if case.open_api else list(check_api(url))
    yield from found
    try:
        yield from check_things(read_state(case.environment), case)
    except Exception as error:
        if not found:
            yield stop(f"{url} answers with an error: {error}")


# -- changes


def save_pool(name: str, template: dict[str, Any]) -> None:
    pool = WorkPoolCreate(name=name, type="ecs", base_job_template=template)
    with get_client(sync_client=True) as prefect:
        prefect.create_work_pool(pool, overwrite=True)


def save_blocks(region: str, threshold: int) -> None:
    """Saves blocks without keys: the task's role has the rights."""
    Workspace(efs_path=Path(EFS_PATH), max_tmp_size=threshold).save(BLOCK_NAME, overwrite=True)
    AwsCredentials(region_name=region).save(BLOCK_NAME, overwrite=True)


def notice_name(environment: str) -> str:
    return f"{environment}: tell me when an export fails"


def add_notice(environment: str, block: str) -> None:
    """Creates the automation that notifies of failed exports.

    Args:
        block: a notification block as type and name, ``slack-webhook/operators``.
    """
    kind, _, name = block.partition("/")
    with get_client(sync_client=True) as prefect:
        document = prefect.read_block_document_by_name(name, kind)
    trigger = EventTrigger(
        posture=Posture.Reactive,
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={"prefect.resource.role": "flow", "prefect.resource.name": "create-batches"},
        expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
    )
    action = SendNotification(
        block_document_id=document.id,
        subject=f"BIOSPEX {environment}: {{{{ flow_run.name }}}} has failed",
        body="{{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
    )
    about = "Sends the sentence of the failure callback. docs/operations.md"
    Automation(
        name=notice_name(environment), description=about, trigger=trigger, actions=[action]
    ).create()
