"""prefect.yaml on a work pool made by hand, and runs by hand with the variables of each pool."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import State

from deploy import job_template
from devtools.services import child, end_at_once
from flows.create_batches import create_batches
from splitter.settings import Settings
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex
from tests.helpers.prefect_cli import ROOT, prefect
from tests.helpers.processes import eventually
from tests.helpers.stacks import IMAGE, OUTPUTS

pytestmark = pytest.mark.prefect_server("pools")

POOL = "my-process-pool"


@pytest.fixture(scope="module")
def pool(prefect_api: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as api:
        api.create_work_pool(WorkPoolCreate(name=POOL, type="process"), overwrite=True)
        yield api
        api.delete_work_pool(POOL)


@pytest.fixture(scope="module")
def log(
    pool: SyncPrefectClient, aws: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The log of a worker that is started by hand in another directory than the checkout."""
    directory = tmp_path_factory.mktemp("worker")
    command = ["env", "-C", str(directory), sys.executable, "-m", "prefect", "worker", "start"]
    environment = {"PREFECT_WORKER_QUERY_SECONDS": "1", "TMPDIR": str(directory)}
    path = directory / "log"
    command += ["--pool", POOL]
    with path.open("wb") as output, child(command, environment, output) as worker:
        yield path
        end_at_once(worker)  # it does not stop within a minute at SIGTERM


def end_of_a_run(api: SyncPrefectClient, request: Any) -> State[Any]:
    """The final state of a new run of the deployment."""
    made = api.read_deployment_by_name("create-batches/create-batches")
    run = api.create_flow_run_from_deployment(made.id, parameters={"request": request})

    def end() -> State[Any] | None:
        state = api.read_flow_run(run.id).state
        return state if state and state.is_final() else None

    return eventually(end)


def test_a_process_pool_runs_an_export_from_any_directory(
    pool: SyncPrefectClient, biospex: Biospex, log: Path
) -> None:
    prefect("deploy", "--name", "create-batches", "--pool", POOL)
    assert end_of_a_run(pool, biospex.request(EXPORTS[0])).is_completed(), log.read_text()
    assert biospex.statuses() == ["success"]


def test_a_worker_without_the_code_reports_where_it_looked(
    pool: SyncPrefectClient, log: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "checkout"
    moved.mkdir()
    for name in ("prefect.yaml", "splitter", "blocks", "flows"):
        (moved / name).symlink_to(ROOT / name)
    prefect("deploy", "--name", "create-batches", "--pool", POOL, directory=moved)
    (moved / "flows").unlink()
    end_of_a_run(pool, {})
    assert "The code of the batch creator is neither in" in log.read_text()
    assert str(moved) in log.read_text()


# -- a click, with the variables of the pool and no others


def of_the_lab(biospex: Biospex) -> dict[str, str]:
    """deploy/env.example, filled in."""
    lines = (ROOT / "deploy" / "env.example").read_text().splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    filled = {
        "TRIGGER_QUEUE_URL": biospex.trigger_queue_url,
        "UPDATES_QUEUE_URL": biospex.queue_url,
        "ALLOWED_QUEUES": biospex.queue_url,
        "ALLOWED_BUCKETS": biospex.bucket,
    }
    return {name: filled.get(name, value) for name, _, value in pairs if value}


def of_the_pool(biospex: Biospex) -> dict[str, str]:
    outputs = OUTPUTS | {
        "TriggerQueueUrl": biospex.trigger_queue_url,
        "UpdatesQueueUrl": biospex.queue_url,
        "BucketName": biospex.bucket,
    }
    template: Any = job_template.job_template(outputs, IMAGE, "splitter")
    env = template["variables"]["properties"]["env"]["default"]
    command = shlex.split(template["job_configuration"]["command"])
    allowed = dict(word.split("=", 1) for word in command if "=" in word)
    assert set(allowed) == {"ALLOWED_BUCKETS", "ALLOWED_QUEUES"}
    return allowed | {name: value for name, value in env.items() if value is not None}


@pytest.mark.parametrize("variables", [of_the_pool, of_the_lab])
@pytest.mark.usefixtures("prefect_api")
def test_a_run_by_hand_works_with_the_variables_of_the_deployment(
    variables: Any, biospex: Biospex, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = variables(biospex)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in {**given, "EFS_PATH": str(workspace)}.items():
        monkeypatch.setenv(name, value)
    create_batches(biospex.address(EXPORTS[0]))
    assert biospex.batches()
    assert biospex.statuses() == []  # a run by hand sends no callback
