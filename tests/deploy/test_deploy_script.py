"""deploy/deploy.sh in an account that has only a bucket, until the listener runs, and again.

The AWS and the Prefect API are the session's; only docker is a stand-in that notes what it is told.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import boto3
import pytest
from moto.cloudformation.models import ChangeSet
from moto.cloudformation.parsing import OutputMap, ResourceMap
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events.actions import RunDeployment
from prefect_aws import AwsCredentials

from blocks.saved import BLOCK_NAME, load_workspace
from deploy.preflight import SERVICES
from splitter.settings import Settings
from tests.deploy.test_answers import WRONG

# moto's CloudFormation knows no alarms, and says so.
pytestmark = [
    pytest.mark.prefect_server("deploy"),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning"),
]

ROOT = Path(__file__).parent.parent.parent
REGION = "eu-west-1"
"""Another region than that of the other tests, so that the same names are free."""

BUCKET = "bucket-of-the-deploy-script"
STACK = "biospex-dev"
POOLS = ["biospex-ecs", "biospex-ecs-listener"]
COPIED = [
    "Dockerfile",
    "requirements.lock",
    "prefect.yaml",
    "blocks",
    "flows",
    "splitter",
    "deploy",
]
STEPS = ["check", "stack", "image", "work pools", "blocks", "deployments", "worker", "listener"]
DOCKER = """\
#!/bin/sh
echo "$1" >> "$DOCKER_LOG"
[ "$1" != login ] || cat > /dev/null
[ "$1" != "$DOCKER_FAILS_AT" ] || { echo "no space left" >&2; exit 1; }
"""


@pytest.fixture(scope="module")
def prefect(prefect_api: dict[str, str]) -> Iterator[SyncPrefectClient]:
    """The session's Prefect API, without deployments before and after."""
    with get_client(sync_client=True) as client:
        clear(client)
        yield client
        clear(client)


def clear(prefect: SyncPrefectClient) -> None:
    for deployment in prefect.read_deployments():
        for run in runs(prefect):
            prefect.delete_flow_run(run.id)
        prefect.delete_resource_owned_automations(f"prefect.deployment.{deployment.id}")
        prefect.delete_deployment(deployment.id)
    for pool in prefect.read_work_pools():
        if pool.name in POOLS:
            prefect.delete_work_pool(pool.name)
    for block in prefect.read_block_documents():
        if block.name == BLOCK_NAME:
            prefect.delete_block_document(block.id)


def runs(prefect: SyncPrefectClient) -> list[FlowRun]:
    """The runs of deployments."""
    return [run for run in prefect.read_flow_runs() if run.deployment_id]


@pytest.fixture(scope="module")
def cloudformation(aws: str) -> Iterator[Any]:
    """An account with a bucket.

    moto is helped to the outputs of a stack made by a change set, and to resources of an update: it
    omits those whose condition is true for the first time, and updates those that do not exist.
    """

    def changes(self: ResourceMap, *arguments: Any) -> Any:
        found = difference(self, *arguments)
        found["Modify"] = [name for name in found["Modify"] if name in self._parsed_resources]
        return found

    def apply(change_set: ChangeSet) -> None:
        stack = change_set.stack
        applied(change_set)
        for name in change_set.template_dict["Resources"]:
            stack.resource_map[name]  # makes it, if it is not there and its condition is true
        stack.output_map = OutputMap(stack.resource_map, change_set.template_dict, stack.stack_id)

    applied, difference = ChangeSet.apply, ResourceMap.build_resource_diff
    s3: Any = boto3.client("s3", region_name=REGION)
    for service in SERVICES:
        boto3.client("iam").create_service_linked_role(AWSServiceName=service)
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChangeSet, "apply", apply)
        patch.setattr(ResourceMap, "build_resource_diff", changes)
        yield boto3.client("cloudformation", region_name=REGION)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with the deployed files, beside a stand-in for docker."""
    directory = tmp_path_factory.mktemp("deploy") / "checkout"
    directory.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, directory / name)
    for left in (directory / "deploy").glob("*.env"):
        left.unlink()
    (directory / ".gitignore").write_text("/.venv\n/deploy/*.env\n__pycache__/\n")
    (directory / ".venv").symlink_to(sys.prefix)
    docker = directory.parent / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    git = ["git", "-C", str(directory), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    return directory


Deploy = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def deploy(prefect: SyncPrefectClient, cloudformation: Any, checkout: Path) -> Deploy:
    """Runs deploy.sh as an operator with keys in the shell."""

    def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        flag = environment.pop("OPEN_API", "--open-api")
        typed = environment.pop("STDIN", None)
        answering = ["--yes"] if typed is None else []
        path = [str(checkout.parent / "bin"), str(checkout / ".venv" / "bin"), os.environ["PATH"]]
        return subprocess.run(
            [checkout / "deploy" / "deploy.sh", *answering, *arguments, *flag.split()],
            input=typed,
            env={
                **os.environ,
                "PATH": os.pathsep.join(path),
                "AWS_REGION": REGION,
                "BUCKET": BUCKET,
                "DOCKER_LOG": str(checkout.parent / "docker.log"),
                **environment,
            },
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="module")
def deployed(deploy: Deploy) -> str:
    """The output of a full run."""
    done = deploy("--environment", "dev")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def state(prefect: SyncPrefectClient, cloudformation: Any, checkout: Path) -> dict[str, Any]:
    """Everything that deploy.sh could change."""
    log = checkout.parent / "docker.log"
    return {
        "stacks": [
            (stack["StackId"], stack["StackStatus"])
            for stack in cloudformation.describe_stacks()["Stacks"]
        ],
        "pools": {
            pool.name: pool.base_job_template
            for pool in prefect.read_work_pools()
            if pool.name in POOLS
        },
        "deployments": sorted(str(one.id) for one in prefect.read_deployments()),
        "automations": sorted(one.name for one in prefect.read_automations()),
        "blocks": sorted(str(block.id) for block in prefect.read_block_documents()),
        "runs": sorted(str(run.id) for run in runs(prefect)),
        "answers": sorted(path.name for path in (checkout / "deploy").glob("*.env")),
        "docker": log.read_text().split() if log.exists() else [],
    }


def test_a_dry_run_shows_the_plan_and_changes_nothing(
    deploy: Deploy, prefect: SyncPrefectClient, cloudformation: Any, checkout: Path
) -> None:
    before = state(prefect, cloudformation, checkout)
    done = deploy("--environment", "dev", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert state(prefect, cloudformation, checkout) == before
    for number, name in enumerate(STEPS, 1):
        assert f"  {number}. {name} " in done.stdout
        assert f"== {number}, {name}\n" in done.stdout
    assert f"+ aws cloudformation deploy --stack-name {STACK} " in done.stdout
    assert "+ docker push " in done.stdout


def test_it_stops_at_the_step_that_fails(deploy: Deploy, prefect: SyncPrefectClient) -> None:
    done = deploy("--environment", "dev", DOCKER_FAILS_AT="build")
    assert done.returncode == 1
    assert "no space left" in done.stderr
    assert "Stopped at step 3, image." in done.stderr
    assert "== 4" not in done.stdout


def test_a_full_run_ends_with_a_listener(
    deployed: str, prefect: SyncPrefectClient, cloudformation: Any, checkout: Path
) -> None:
    (stack,) = cloudformation.describe_stacks(StackName=STACK)["Stacks"]
    outputs = {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}
    commit = subprocess.run(
        ["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    image = f"{outputs['RepositoryUri']}:{commit}"
    for pool in POOLS:
        template = prefect.read_work_pool(pool).base_job_template
        definition = template["job_configuration"]["task_definition"]
        assert definition["containerDefinitions"][0]["image"] == image
        env = template["variables"]["properties"]["env"]["default"]
        assert env["TRIGGER_QUEUE_URL"] == outputs["TriggerQueueUrl"]
    ecs: Any = boto3.client("ecs", region_name=REGION)
    [service] = ecs.describe_services(
        cluster=outputs["ClusterArn"], services=["dev-biospex-worker"]
    )["services"]
    assert service["desiredCount"] == 1
    given = {one["ParameterKey"]: one["ParameterValue"] for one in stack["Parameters"]}
    assert given["WorkerImage"] == image  # what becomes of it, test_ecs_worker.py tells
    assert (checkout.parent / "docker.log").read_text().split()[-3:] == ["build", "login", "push"]
    create_batches, listen = (
        prefect.read_deployment_by_name(name)
        for name in ("create-batches/create-batches", "listen/listen")
    )
    assert [create_batches.work_pool_name, listen.work_pool_name] == POOLS
    assert [run.deployment_id for run in runs(prefect)] == [listen.id]
    automations = prefect.read_automations()
    assert {one.name for one in automations} == {"listen comes back", "listen did not begin"}
    for automation in automations:
        (action,) = automation.actions
        assert isinstance(action, RunDeployment)
        assert action.deployment_id == listen.id
    assert outputs["TriggerQueueUrl"] in deployed
    assert outputs["TriggerQueueArn"] in deployed


@pytest.mark.usefixtures("deployed")
def test_the_blocks_have_no_key_of_the_operators_shell() -> None:
    credentials = cast(AwsCredentials, AwsCredentials.load(BLOCK_NAME))
    assert credentials.aws_access_key_id is None
    assert credentials.aws_secret_access_key is None
    assert credentials.aws_client_parameters.endpoint_url is None
    assert credentials.region_name == REGION
    assert load_workspace(Settings.load()).efs_path == Path("/efs/batch")


@pytest.mark.usefixtures("deployed")
def test_a_second_run_changes_nothing_but_the_image(
    deploy: Deploy, prefect: SyncPrefectClient, cloudformation: Any, checkout: Path
) -> None:
    before = state(prefect, cloudformation, checkout)
    workspace = load_workspace(Settings.load())
    workspace.max_tmp_size = 5
    workspace.save(BLOCK_NAME, overwrite=True)
    done = deploy("--environment", "dev")
    assert done.returncode == 0, done.stdout + done.stderr
    after = state(prefect, cloudformation, checkout)
    assert after.pop("docker") == [*before.pop("docker"), "build", "login", "push"]
    assert after == before
    assert load_workspace(Settings.load()).max_tmp_size == 5


@pytest.mark.usefixtures("deployed")
def test_another_environment_does_not_take_the_pool(deploy: Deploy) -> None:
    network = {"VPC_ID": "vpc-1", "SUBNET_IDS": "subnet-1", "UPDATES_QUEUE_ARN": ""}
    done = deploy("--environment", "loc", **network)
    assert done.returncode == 1
    assert "each environment needs a Prefect API of its own." in done.stderr


@pytest.mark.usefixtures("deployed")
def test_another_disk_needs_another_threshold(deploy: Deploy) -> None:
    same = deploy("--environment", "dev", "--dry-run")
    assert "set Threshold to" not in same.stdout
    # The disk is the 19th question; Enter takes what is offered.
    larger = deploy("--environment", "dev", "--dry-run", STDIN="\n" * 18 + "150\n" + "\n" * 9)
    assert larger.returncode == 0, larger.stderr
    assert f"the disk was 100 GiB. For the new one set Threshold to {50 * 1024**3}" in larger.stdout


def test_production_needs_a_topic_that_somebody_reads(deploy: Deploy) -> None:
    network = {"VPC_ID": "vpc-1", "SUBNET_IDS": "subnet-1", "UPDATES_QUEUE_ARN": ""}
    done = deploy("--environment", "prod", **network)
    assert done.returncode == 1
    assert "prod needs a topic that somebody reads" in done.stderr


def stops(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """The findings about answers; not about pools and deployments, which belong to dev by now."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("stop: ")]
    return [line for line in lines if "belongs to" not in line]


def test_all_wrong_answers_are_reported_at_once_and_nothing_is_made(
    deploy: Deploy, prefect: SyncPrefectClient, cloudformation: Any, checkout: Path
) -> None:
    (checkout / "deploy" / "loc.env").unlink(missing_ok=True)
    before = state(prefect, cloudformation, checkout)
    in_account = {
        "NOTIFICATION_BLOCK": "slack-webhook/nobody",
        "SUBNET_IDS": "subnet-404,subnet-405,subnet-406",
        "VPC_ID": "vpc-404",
        "ALARM_TOPIC_ARN": f"arn:aws:sns:{REGION}:123456789012:missing",
        "UPDATES_QUEUE_ARN": f"arn:aws:sqs:{REGION}:123456789012:missing",
        "TRIGGER_QUEUE_ARN": f"arn:aws:sqs:{REGION}:123456789012:loc-batch-trigger-dead",
        "BUCKET_KEY_ARN": f"arn:aws:kms:{REGION}:123456789012:key/missing",
    }
    done = deploy("--environment", "loc", "--dry-run", **{**WRONG, **in_account})
    assert done.returncode == 1
    for name in WRONG:
        assert any(name in line for line in stops(done)), (name, done.stderr)
    assert len(set(stops(done))) >= 20
    assert "== 2" not in done.stdout
    assert state(prefect, cloudformation, checkout) == before


def test_a_wrong_region_hides_no_other_wrong_answer(deploy: Deploy) -> None:
    done = deploy("--environment", "loc", "--dry-run", **{**WRONG, "AWS_REGION": "us-east-22"})
    assert done.returncode == 1
    assert len(stops(done)) == 21
    assert "AWS_REGION='us-east-22': AWS has no such region" in stops(done)[0]


def test_an_answer_that_would_remove_the_queue_is_refused(
    deployed: str, deploy: Deploy, cloudformation: Any, checkout: Path
) -> None:
    """The answer is the ARN that deploy.sh prints at its end."""
    (stack,) = cloudformation.describe_stacks(StackName=STACK)["Stacks"]
    own = {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}["TriggerQueueArn"]
    assert own in deployed
    kept = checkout / "deploy" / "dev.env"
    before = kept.read_text()
    kept.write_text(before.replace("TRIGGER_QUEUE_ARN=\n", f"TRIGGER_QUEUE_ARN={own}\n"))
    done = deploy("--environment", "dev", "--dry-run")
    kept.write_text(before)
    assert done.returncode == 1
    assert f"TRIGGER_QUEUE_ARN='{own}': that is the stack's own queue" in done.stderr


def test_an_open_prefect_on_this_machine_is_refused_without_the_option(
    deploy: Deploy, checkout: Path
) -> None:
    (checkout / "deploy" / "loc.env").unlink(missing_ok=True)  # answers of another test
    secret = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prefect"
    network = {"VPC_ID": "vpc-1", "SUBNET_IDS": "subnet-1", "PREFECT_API_KEY_SECRET_ARN": secret}
    refused = deploy("--environment", "loc", "--dry-run", OPEN_API="", **network)
    assert refused.returncode == 1
    assert "is this machine: tasks on ECS cannot reach it" in refused.stderr
    assert "answers anybody" in refused.stderr


@pytest.mark.usefixtures("deployed")
def test_the_shape_changes_once_the_listener_is_cancelled(
    deploy: Deploy, prefect: SyncPrefectClient, cloudformation: Any
) -> None:
    refused = deploy("--environment", "dev", "--shape", "single")
    assert refused.returncode == 1
    assert "cancel the run listen" in refused.stderr
    for run in runs(prefect):
        prefect.delete_flow_run(run.id)
    settings = "BATCH_SIZE=10 MAX_IN_FLIGHT=1"
    # The settings are the 20th question, the last but one before the confirmation.
    typed = "\n" * 19 + settings + "\n\ny\n"
    done = deploy("--environment", "dev", "--shape", "single", STDIN=typed)
    assert done.returncode == 0, done.stdout + done.stderr
    (stack,) = cloudformation.describe_stacks(StackName=STACK)["Stacks"]
    given = {one["ParameterKey"]: one["ParameterValue"] for one in stack["Parameters"]}
    size = [given[name] for name in ("Cpu", "Memory", "EphemeralStorage")]
    assert [given["Shape"], *size, given["FlowSettings"]] == [
        "single",
        "512",
        "2048",
        "21",
        settings,
    ]
    steps = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    names = ["check", "stack", "image", "blocks", "service"]
    assert steps == [f"== {number}, {name}" for number, name in enumerate(names, 1)]
    assert not runs(prefect)  # flows.serve starts the listener
