"""prefect.yaml and the blocks, against a real Prefect server."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from runpy import run_module

import pytest
import yaml  # type: ignore[import-untyped]
from prefect.blocks.notifications import SlackWebhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.settings.models.server.services import ServerServicesDBVacuumSettings
from prefect.states import Pending
from prefect_aws import AwsCredentials
from prefect_aws.workers import ECSWorker
from pydantic import SecretStr

from blocks.register import credentials_from_environment, register
from blocks.saved import BLOCK_NAME, Aws, load_workspace, origin
from blocks.workspace import Workspace
from deploy import server
from splitter.aws.s3 import CLIENT_CONFIG
from splitter.settings import Settings
from tests.helpers.biospex import Biospex
from tests.helpers.prefect_cli import ROOT, prefect
from tests.helpers.processes import eventually

pytestmark = [
    pytest.mark.prefect_server("pools"),
    pytest.mark.usefixtures("prefect_api", "aws"),
]


@pytest.fixture(scope="module")
def deployed(prefect_api: dict[str, str]) -> Iterator[None]:
    """Both deployments; the listener's automations are deleted afterwards."""
    template = ECSWorker.get_default_base_job_template()
    with get_client(sync_client=True) as api, pytest.MonkeyPatch.context() as patch:
        for name in ("biospex-ecs", "biospex-ecs-listener"):
            pool = WorkPoolCreate(name=name, type="ecs", base_job_template=template)
            api.create_work_pool(pool, overwrite=True)
        patch.setenv("BIOSPEX_ENVIRONMENT", "dev")
        prefect("deploy", "--all")
        yield
        listen = api.read_deployment_by_name("listen/listen").id
        api.delete_resource_owned_automations(f"prefect.deployment.{listen}")


@pytest.mark.usefixtures("deployed")
def test_prefect_deploy_takes_both_deployments_on_an_ecs_work_pool() -> None:
    with get_client(sync_client=True) as api:
        for name, pool, tag in (
            ("create-batches/create-batches", "biospex-ecs", "export"),
            ("listen/listen", "biospex-ecs-listener", "listener"),
        ):
            deployment = api.read_deployment_by_name(name)
            assert deployment.work_pool_name == pool
            assert deployment.tags == ["biospex", tag, "dev"]
            assert "docs/operations.md" in str(deployment.description)
        schema = api.read_deployment_by_name(
            "create-batches/create-batches"
        ).parameter_openapi_schema
    fields = schema["definitions"]["Request"]["properties"]  # type: ignore[index]
    assert set(fields) == {
        "downloadId",
        "file",
        "exportPath",
        "totalSize",
        "s3Bucket",
        "updatesQueueUrl",
    }
    assert all(field["description"] and field["examples"] for field in fields.values())


def test_the_server_of_one_machine_asks_for_authentication() -> None:
    deploy = ROOT / "deploy"
    services = yaml.safe_load((deploy / "compose.yaml").read_text())["services"]
    asked = services["prefect"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"]
    assert asked.startswith("${PREFECT_API_AUTH_STRING:?")  # compose stops where it is not set
    assert services["prefect"]["ports"] == ["127.0.0.1:4200:4200"]
    assert services["batch-creator"]["env_file"] == [".env"]
    assert services["batch-creator"]["environment"]["POSTGRES_PASSWORD"] == ""
    assert "\nPREFECT_API_AUTH_STRING=" in (deploy / "env.example").read_text()
    unit = (deploy / "systemd" / "biospex-prefect.service").read_text()
    assert "EnvironmentFile=/etc/biospex-prefect.env" in unit


def test_the_server_of_one_machine_deletes_old_runs() -> None:
    """Prefect's own settings accept the names, and its vacuum is on."""
    deploy = ROOT / "deploy"
    services = yaml.safe_load((deploy / "compose.yaml").read_text())["services"]
    of_compose = services["prefect"]["environment"]
    unit = (deploy / "systemd" / "biospex-prefect.service").read_text()
    page = (ROOT / "docs" / "where-prefect-runs.md").read_text()
    prefix = "PREFECT_SERVER_SERVICES_DB_VACUUM_"
    for name, value in (("ENABLED", "true"), ("RETENTION_PERIOD", "7776000")):
        assert of_compose[prefix + name] == value
        assert f"Environment={prefix}{name}={value}\n" in unit
        assert f"{prefix}{name}={value}" in page
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ENABLED", "RETENTION_PERIOD"):
            patch.setenv(prefix + name, of_compose[prefix + name])
        vacuum = ServerServicesDBVacuumSettings()
    assert {"events", "flow_runs"} <= vacuum.enabled_vacuum_types
    assert vacuum.retention_period == timedelta(days=90)


def test_an_automation_notifies_of_a_failed_export() -> None:
    SlackWebhook(url=SecretStr("https://hooks.example.org/x")).save("operators", overwrite=True)
    assert not server.has_notice("prod")
    server.add_notice("prod", "slack-webhook/operators")
    assert server.has_notice("prod")
    with get_client(sync_client=True) as api:
        [made] = api.read_automations_by_name("prod: tell me when an export fails")
        assert [action.type for action in made.actions] == ["send-notification"]
        api.delete_automation(made.id)
    SlackWebhook.delete("operators")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EFS_PATH", "/mnt/efs")
    monkeypatch.setenv("MAX_TMP_SIZE", "5")
    register()
    yield
    Workspace.delete(BLOCK_NAME)
    AwsCredentials.delete(BLOCK_NAME)


def test_the_environment_is_used_without_saved_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFS_PATH", "/mnt/other")
    workspace = load_workspace(Settings.load())
    assert workspace.efs_path == Path("/mnt/other")
    assert origin(workspace) == Aws().origin == "environment"


@pytest.mark.parametrize("field", ["tmp_path", "efs_path"])
def test_the_block_refuses_a_relative_path_as_the_environment_does(field: str) -> None:
    with pytest.raises(ValueError, match="must be an absolute path"):
        Workspace.model_validate({field: "efs/batch"})


@pytest.mark.usefixtures("registered")
def test_registered_blocks_are_used_and_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFS_PATH", "/mnt/other")
    workspace = load_workspace(Settings.load())
    assert workspace.efs_path == Path("/mnt/efs")
    assert workspace.max_tmp_size == 5
    assert origin(workspace) == "biospex-workspace block 'biospex'"
    assert Aws().origin == "aws-credentials block 'biospex'"


@pytest.mark.usefixtures("registered")
def test_the_registered_credentials_reach_the_endpoint_without_the_environment(
    biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    answer = Aws().client("s3", CLIENT_CONFIG).list_objects_v2(Bucket=biospex.bucket)
    assert answer["KeyCount"] == 0


def test_temporary_keys_are_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    lasting = credentials_from_environment()
    assert lasting.aws_access_key_id == "AKIA1"
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    passing = credentials_from_environment()
    assert passing.aws_access_key_id is None
    assert passing.aws_secret_access_key is None
    assert passing.aws_session_token is None
    assert passing.region_name == lasting.region_name


@pytest.mark.filterwarnings("ignore:'blocks.register' found in sys.modules")
def test_register_saves_nothing_with_an_invalid_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_TMP_SIZE", "7 GB")
    with pytest.raises(SystemExit) as end:
        run_module("blocks.register", run_name="__main__")
    sentence = "Nothing was saved: These settings cannot be used: MAX_TMP_SIZE='7 GB'"
    assert str(end.value.code).startswith(sentence)


def test_a_listener_that_never_starts_is_replaced(deployed: None, tmp_path: Path) -> None:
    """As without capacity in ECS: the run is pending, and no event follows."""
    patient = (ROOT / "prefect.yaml").read_text()
    assert patient.count("within: 300") == 1
    (tmp_path / "prefect.yaml").write_text(patient.replace("within: 300", "within: 10"))
    prefect("deploy", "--all", "--prefect-file", str(tmp_path / "prefect.yaml"))
    with get_client(sync_client=True) as api:
        listen = api.read_deployment_by_name("listen/listen").id
        stuck = api.create_flow_run_from_deployment(listen)
        api.set_flow_run_state(stuck.id, Pending(name="Submitting"))

        def replacement() -> list[FlowRun]:
            found = api.read_flow_runs()
            return [run for run in found if run.deployment_id == listen and run.id != stuck.id]

        assert eventually(replacement)
        for run in api.read_flow_runs():
            if run.deployment_id == listen:
                api.delete_flow_run(run.id)
