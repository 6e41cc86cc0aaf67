"""deploy/main.py in an account that has only a bucket, until the listener runs, and again.

The AWS and the Prefect API are the session's. The commands aws and prefect run in this process;
docker is a stand-in that notes its commands.
"""

import io
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import boto3
import pytest
from awscli.clidriver import create_clidriver  # type: ignore[import-untyped]
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events.actions import RunDeployment
from prefect.testing.cli import CycloptsCliRunner
from prefect_aws import AwsCredentials

from blocks.saved import BLOCK_NAME, load_workspace
from deploy import main, steps
from deploy.answers import load
from deploy.preflight import SERVICES
from deploy.server import POOLS
from splitter.settings import Settings
from tests.helpers.answers import GOOD, WRONG

# moto's CloudFormation knows no alarms, and says so.
pytestmark = [
    pytest.mark.prefect_server("serve"),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning"),
]

REGION = "eu-west-1"
"""Another region than that of the other tests, so that the same names are free."""

BUCKET = "bucket-of-the-deploy-script"
STACK = "biospex-dev"
STEPS = ["check", "stack", "image", "work pools", "blocks", "deployments", "worker", "listener"]
COMMIT = "c" * 40


@pytest.fixture(scope="module")
def prefect_client(prefect_api: dict[str, str]) -> Iterator[SyncPrefectClient]:
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
        if pool.name in POOLS.values():
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
    from moto.cloudformation.models import ChangeSet  # takes seconds, in every worker
    from moto.cloudformation.parsing import OutputMap, ResourceMap

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


@dataclass
class Operator:
    """Runs the program as an operator with keys in the shell.

    Attributes:
        directory: of the files that keep the answers.
        docker: the commands that docker got.
    """

    directory: Path
    docker: list[str] = field(default_factory=list)
    docker_fails_at: str = ""

    def deploy(
        self, *arguments: str, environment: str = "dev", typed: str | None = None, **last: str
    ) -> "Done":
        """Deploy with answers of the last time, and type others."""
        path = self.directory / f"{environment}.env"
        if not path.exists() or last:
            given = {"AWS_REGION": REGION, "BUCKET": BUCKET, **last}
            path.write_text("".join(f"{name}={value}\n" for name, value in given.items()))
        answering = ["--yes"] if typed is None else []
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(out),
            redirect_stderr(err),
            chdir(steps.ROOT),
        ):
            for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "BIOSPEX_ENVIRONMENT", "PATH"):
                patch.setenv(name, os.environ.get(name, ""))  # so that it is restored
            patch.setattr(main, "ANSWERS", self.directory)
            patch.setattr(main, "commit", lambda: COMMIT)
            patch.setattr("shutil.which", lambda name: name)
            patch.setattr(steps, "execute", self.execute)
            patch.setattr("sys.stdin", io.StringIO(typed or ""))
            status = main.main([*answering, "--environment", environment, *arguments])
        return Done(status, out.getvalue(), err.getvalue())

    def execute(self, program: str, *arguments: str) -> None:
        status: Any = 0
        if program == "docker":
            self.docker.append(arguments[0])
            status = int(arguments[0] == self.docker_fails_at)
        elif program == "sh":
            assert arguments[1].startswith("aws ecr get-login-password | docker login ")
            self.docker.append("login")
        elif "update-termination-protection" in arguments:
            status = 1  # moto has no such call
        elif program == "aws":
            status = create_clidriver().main(list(arguments))
        else:
            result = CycloptsCliRunner().invoke(list(arguments))
            print(result.output)
            status = result.exit_code
        if status:
            raise subprocess.CalledProcessError(int(status), [program, *arguments])


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def stops(self) -> list[str]:
        """The findings about answers; not about pools and deployments, which belong to dev."""
        lines = [line for line in self.err.splitlines() if line.startswith("stop: ")]
        return [line for line in lines if "belongs to" not in line]


@pytest.fixture(scope="module")
def operator(
    prefect_client: SyncPrefectClient,
    cloudformation: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Operator:
    return Operator(tmp_path_factory.mktemp("answers"))


@pytest.fixture(scope="module")
def deployed(operator: Operator) -> str:
    """The output of a full run."""
    done = operator.deploy("--open-api")
    assert done.status == 0, done.out + done.err
    return done.out


def state(prefect: SyncPrefectClient, cloudformation: Any, operator: Operator) -> dict[str, Any]:
    """Everything that a deployment could change, apart from the image."""
    return {
        "stacks": [
            (stack["StackId"], stack["StackStatus"])
            for stack in cloudformation.describe_stacks()["Stacks"]
        ],
        "pools": {
            pool.name: pool.base_job_template
            for pool in prefect.read_work_pools()
            if pool.name in POOLS.values()
        },
        "deployments": sorted(str(one.id) for one in prefect.read_deployments()),
        "automations": sorted(one.name for one in prefect.read_automations()),
        "blocks": sorted(str(block.id) for block in prefect.read_block_documents()),
        "runs": sorted(str(run.id) for run in runs(prefect)),
    }


def test_a_dry_run_shows_the_plan_and_changes_nothing(
    operator: Operator, prefect_client: SyncPrefectClient, cloudformation: Any
) -> None:
    before = state(prefect_client, cloudformation, operator)
    done = operator.deploy("--dry-run", "--open-api")
    assert done.status == 0, done.err
    assert state(prefect_client, cloudformation, operator) == before
    assert operator.docker == []
    for number, name in enumerate(STEPS, 1):
        assert f"  {number}. {name} " in done.out
        assert f"== {number}, {name}\n" in done.out
    assert f"+ aws cloudformation deploy --stack-name {STACK} " in done.out
    assert "+ docker push " in done.out


def test_it_stops_at_the_step_that_fails(operator: Operator) -> None:
    operator.docker_fails_at = "build"
    done = operator.deploy("--open-api")
    operator.docker_fails_at = ""
    assert done.status == 1
    assert "Stopped at step 3, image." in done.err
    assert "== 4" not in done.out


def test_a_full_run_ends_with_a_listener(
    deployed: str, operator: Operator, prefect_client: SyncPrefectClient, cloudformation: Any
) -> None:
    (stack,) = cloudformation.describe_stacks(StackName=STACK)["Stacks"]
    outputs = {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}
    image = f"{outputs['RepositoryUri']}:{COMMIT}"
    for pool in POOLS.values():
        template = prefect_client.read_work_pool(pool).base_job_template
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
    assert given["WorkerImage"] == image  # test_ecs_worker.py runs its containers
    assert operator.docker[-3:] == ["build", "login", "push"]
    create_batches, listen = (
        prefect_client.read_deployment_by_name(name)
        for name in ("create-batches/create-batches", "listen/listen")
    )
    assert [create_batches.work_pool_name, listen.work_pool_name] == [*POOLS.values()]
    assert [run.deployment_id for run in runs(prefect_client)] == [listen.id]
    automations = prefect_client.read_automations()
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
    operator: Operator, prefect_client: SyncPrefectClient, cloudformation: Any
) -> None:
    before, images = state(prefect_client, cloudformation, operator), [*operator.docker]
    workspace = load_workspace(Settings.load())
    workspace.max_tmp_size = 5
    workspace.save(BLOCK_NAME, overwrite=True)
    done = operator.deploy("--open-api")
    assert done.status == 0, done.out + done.err
    assert state(prefect_client, cloudformation, operator) == before
    assert f"Threshold in biospex-workspace should be {100 * 1024**3 // 3}." in done.out
    assert operator.docker == [*images, "build", "login", "push"]
    assert load_workspace(Settings.load()).max_tmp_size == 5


NETWORK = {"VPC_ID": "vpc-1", "SUBNET_IDS": "subnet-1", "UPDATES_QUEUE_ARN": ""}


@pytest.mark.usefixtures("deployed")
def test_an_open_prefect_of_another_environment_is_refused(operator: Operator) -> None:
    done = operator.deploy(environment="prod", **NETWORK)
    assert done.status == 1
    assert "each environment needs a Prefect API of its own." in done.err
    assert "is this machine: tasks on ECS cannot reach it" in done.err
    assert "prod needs a topic that somebody reads" in done.err


@pytest.mark.usefixtures("deployed")
def test_a_kept_trigger_queue_gets_the_stacks_dead_letter_queue(
    operator: Operator,
) -> None:
    sqs: Any = boto3.client("sqs", region_name=REGION)
    url = sqs.create_queue(QueueName="kept")["QueueUrl"]
    arn = f"arn:aws:sqs:{REGION}:123456789012:kept"
    path = operator.directory / "dev.env"
    before = path.read_text()
    last = {**load(path), "TRIGGER_QUEUE_ARN": arn}
    done = operator.deploy("--dry-run", "--open-api", **last)
    path.write_text(before)
    assert done.status == 0, done.err
    [command] = re.findall(r"^\+ (aws sqs .*)$", done.out, re.MULTILINE)
    # aws sqs does not follow AWS_ENDPOINT_URL.
    sqs.set_queue_attributes(QueueUrl=url, Attributes=json.loads(shlex.split(command)[-1]))
    found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])
    assert ":dev-batch-trigger-dead" in found["Attributes"]["RedrivePolicy"]


def test_all_wrong_answers_are_reported_at_once_before_any_change(
    operator: Operator, prefect_client: SyncPrefectClient, cloudformation: Any
) -> None:
    before = state(prefect_client, cloudformation, operator)
    in_account = {
        "NOTIFICATION_BLOCK": "slack-webhook/nobody",
        "SUBNET_IDS": "subnet-404,subnet-405",
        "VPC_ID": "vpc-404",
        "ALARM_TOPIC_ARN": f"arn:aws:sns:{REGION}:123456789012:missing",
        "UPDATES_QUEUE_ARN": f"arn:aws:sqs:{REGION}:123456789012:missing",
        "TRIGGER_QUEUE_ARN": f"arn:aws:sqs:{REGION}:123456789012:loc-batch-trigger-dead",
    }
    done = operator.deploy("--open-api", environment="loc", **{**WRONG, **in_account})
    assert done.status == 1
    for name in WRONG:
        assert any(name in line for line in done.stops), (name, done.err)
    assert len(set(done.stops)) >= 19
    assert "== 2" not in done.out
    assert state(prefect_client, cloudformation, operator) == before


def test_a_wrong_region_ends_the_questions(operator: Operator) -> None:
    done = operator.deploy(environment="loc", **{**GOOD, "AWS_REGION": "us-east-22"})
    assert done.status == 1
    assert "AWS_REGION='us-east-22': AWS has no such region" in done.err


def test_without_an_answer_it_stops(operator: Operator) -> None:
    done = operator.deploy(environment="loc", typed="")
    assert done.status == 1
    assert "No answer; with --yes nothing is asked." in done.err


@pytest.mark.usefixtures("deployed")
def test_the_shape_changes_once_the_listener_is_cancelled(
    operator: Operator, prefect_client: SyncPrefectClient, cloudformation: Any
) -> None:
    refused = operator.deploy("--shape", "single", "--open-api")
    assert refused.status == 1
    assert "cancel the run listen" in refused.err
    for run in runs(prefect_client):
        prefect_client.delete_flow_run(run.id)
    settings = "BATCH_SIZE=10 MAX_IN_FLIGHT=1"
    # The environment is the first question, the settings the 13th, as the shape is an option; Enter
    # takes the default.
    typed = "\n" * 12 + settings + "\n" * 7 + "y\n"
    done = operator.deploy("--shape", "single", "--open-api", typed=typed)
    assert done.status == 0, done.out + done.err
    (stack,) = cloudformation.describe_stacks(StackName=STACK)["Stacks"]
    given = {one["ParameterKey"]: one["ParameterValue"] for one in stack["Parameters"]}
    names = ["Shape", "Cpu", "Memory", "EphemeralStorage", "FlowSettings"]
    assert [given[name] for name in names] == ["single", "512", "2048", "21", settings]
    single = ["check", "stack", "image", "blocks", "service"]
    begun = [f"{number}, {name}" for number, name in enumerate(single, 1)]
    assert re.findall(r"== (\d, .*)", done.out) == begun
    assert not runs(prefect_client)  # flows.serve starts the listener


@pytest.mark.skipif(not (steps.ROOT / ".venv").exists(), reason="deploy.sh would make .venv")
def test_the_shell_file_starts_the_program(tmp_path: Path) -> None:
    script = [str(steps.ROOT / "deploy" / "deploy.sh"), "--shape", "round"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "invalid choice: 'round'" in done.stderr
