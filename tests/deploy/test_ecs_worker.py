"""From the stack to an export: real ECS workers with moto as AWS, and their tasks as processes.

The workers are the containers of the stack's service, as processes. Their RunTask calls are read
back from moto, and the container that AWS would start is a process here as well: its command, in
its environment and no other. Each process notes the calls it makes to AWS, and they are held
against the policy of its role.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled

from deploy import server
from deploy.job_template import job_template
from deploy.server import POOLS
from devtools import services as local
from devtools.services import REGION, child, end_at_once
from tests.conftest import EXPORTS
from tests.helpers.biospex import client, messages
from tests.helpers.containers import container, log_of, recording
from tests.helpers.faulty_proxy import NO_CAPACITY, FaultyProxy, Rule, faulty_proxy
from tests.helpers.prefect_cli import ROOT, prefect
from tests.helpers.processes import eventually
from tests.helpers.stacks import (
    ACTIONS,
    CALLED,
    IMAGE,
    SELDOM,
    Stack,
    grants,
    listed,
    stack,
    worker_containers,
)

pytestmark = [
    pytest.mark.prefect_server("pools"),
    pytest.mark.usefixtures("aws", "prefect_api"),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS"),
]


@pytest.fixture(scope="module")
def loc(bucket: str, prefect_api: dict[str, str]) -> Iterator[Stack]:
    api_url = prefect_api["PREFECT_API_URL"]
    with stack("loc", BucketName=bucket, WorkerImage=IMAGE, PrefectApiUrl=api_url) as made:
        yield made


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which each process records its calls to AWS, in a file of its name."""
    return tmp_path_factory.mktemp("calls")


@pytest.fixture(scope="module")
def api(prefect_api: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as made:
        yield made


@pytest.fixture(scope="module")
def deployed(loc: Stack, api: SyncPrefectClient, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The work pools and both deployments, as an operator makes them.

    The image has the code in /opt/biospex; here it is where it is.
    """
    outputs = {one["OutputKey"]: one["OutputValue"] for one in loc.outputs()}
    template = partial(job_template, outputs, IMAGE, env={"BATCH_SIZE": "10"})
    splitter = template("splitter", cpu=1024, memory=3072, ephemeral_storage=50)
    listener = template("listener", cpu=256, memory=1024, ephemeral_storage=21)
    server.save_pool(POOLS["splitter"], splitter)
    server.save_pool(POOLS["listener"], listener)
    directory = tmp_path_factory.mktemp("deploy")
    deployments = (ROOT / "prefect.yaml").read_text()
    assert deployments.count("/opt/biospex") == 1
    (directory / "prefect.yaml").write_text(deployments.replace("/opt/biospex", str(ROOT)))
    prefect("deploy", "--all", "--prefect-file", str(directory / "prefect.yaml"))


@pytest.fixture(scope="module")
def events(loc: Stack) -> str:
    """The URL of the queue with the events of stopped tasks."""
    return loc["TaskEventsQueueUrl"]


@pytest.fixture(scope="module")
def to_ecs() -> Iterator[FaultyProxy]:
    """A proxy between the workers and ECS."""
    with faulty_proxy() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def workers(
    deployed: None,
    to_ecs: FaultyProxy,
    loc: Stack,
    calls: Path,
    api: SyncPrefectClient,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """The containers of the stack's service; their unfinished runs are cancelled afterwards."""
    directory = tmp_path_factory.mktemp("workers")
    with ExitStack() as processes:
        for container in worker_containers(loc):
            log = processes.enter_context((directory / container["name"]).open("wb"))
            environment = {one["name"]: one["value"] for one in container["environment"]}
            environment |= recording(calls / "worker") | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
            # Nothing but ECS is asked by way of the proxy; the name sets it apart.
            ecs = os.environ["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost")
            environment |= {"AWS_ENDPOINT_URL_ECS": ecs, "http_proxy": to_ecs.url}
            environment |= {"no_proxy": "127.0.0.1"}
            command = [sys.executable, "-m", *container["command"]]
            worker = processes.enter_context(child(command, environment, log))
            processes.callback(end_at_once, worker)  # it does not stop within a minute at SIGTERM
        yield
    unfinished = ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED"]
    state = FlowRunFilterState.model_validate({"type": {"any_": unfinished}})
    for left in api.read_flow_runs(flow_run_filter=FlowRunFilter(state=state)):
        if left.work_pool_name in POOLS.values():
            api.set_flow_run_state(left.id, Cancelled(), force=True)


def started(
    api: SyncPrefectClient, deployment: str, parameters: Any = None, variables: Any = None
) -> FlowRun:
    """A new run of a deployment, as the UI starts one."""
    found = api.read_deployment_by_name(deployment)
    return api.create_flow_run_from_deployment(
        found.id, parameters=parameters, job_variables=variables
    )


def task_of(flow_run_id: UUID, cluster: str) -> Any:
    """The ECS task that the worker runs for a flow run, as soon as there is one."""
    ecs = client("ecs")

    def find() -> Any:
        for arn in ecs.list_tasks(cluster=cluster)["taskArns"]:
            [task] = ecs.describe_tasks(cluster=cluster, tasks=[arn], include=["TAGS"])["tasks"]
            if {"key": "prefect.io/flow-run-id", "value": str(flow_run_id)} in task["tags"]:
                return task
        return None

    return eventually(find)


def definition_of(task: Any) -> Any:
    found = client("ecs").describe_task_definition(taskDefinition=task["taskDefinitionArn"])
    return found["taskDefinition"]


def container_of(task: Any) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a task's only container."""
    [defined] = definition_of(task)["containerDefinitions"]
    [changed] = task["overrides"]["containerOverrides"]
    assert changed["name"] == defined["name"]
    environment = [*defined.get("environment", []), *changed["environment"]]
    return changed["command"], {one["name"]: one["value"] for one in environment}


def trigger(bucket: str, updates: str) -> dict[str, Any]:
    """The message for an export that is now in the bucket."""
    archive = EXPORTS[0]
    client("s3").upload_file(str(archive), bucket, f"export/{archive.name}")
    return {**local.trigger(512, archive, updates), "s3Bucket": bucket}


@dataclass(frozen=True)
class Listening:
    """The listener's run, its task and the container."""

    run: FlowRun
    task: Any
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def listening(
    workers: None,
    loc: Stack,
    api: SyncPrefectClient,
    calls: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Listening]:
    run = started(api, "listen/listen")
    task = task_of(run.id, loc["ClusterArn"])
    with container(
        *container_of(task), tmp_path_factory.mktemp("tasks") / "listener", calls
    ) as process:
        yield Listening(run, task, process)


def run_of(api: SyncPrefectClient, request: Any, state: str) -> FlowRun:
    """The run of a message, as soon as it is in the state."""

    def find() -> FlowRun | None:
        for run in api.read_flow_runs():
            if run.parameters == {"request": request} and run.state_name == state:
                return run
        return None

    return eventually(find)


def answer(loc: Stack) -> Any:
    """The one message on the callback queue, once the trigger queue is empty."""
    sqs, updates = client("sqs"), loc["UpdatesQueueUrl"]
    eventually(lambda: messages(sqs, loc["TriggerQueueUrl"]) == (0, 0))
    [message] = sqs.receive_message(QueueUrl=updates, MaxNumberOfMessages=10)["Messages"]
    sqs.delete_message(QueueUrl=updates, ReceiptHandle=message["ReceiptHandle"])
    return json.loads(message["Body"])


def test_a_trigger_waits_for_capacity_and_becomes_a_task_that_splits_the_export(
    listening: Listening,
    loc: Stack,
    bucket: str,
    api: SyncPrefectClient,
    calls: Path,
    to_ecs: FaultyProxy,
    tmp_path: Path,
) -> None:
    to_ecs.inject(Rule("RunTask", "no capacity", times=10**6))
    request = trigger(bucket, loc["UpdatesQueueUrl"])
    client("sqs").send_message(QueueUrl=loc["TriggerQueueUrl"], MessageBody=json.dumps(request))
    export = run_of(api, request, "AwaitingRetry")
    assert export.state and NO_CAPACITY in str(export.state.message)
    to_ecs.inject()
    task = task_of(export.id, loc["ClusterArn"])
    with container(*container_of(task), tmp_path / "splitter", calls) as process:
        assert process.wait(timeout=120) == 0, log_of(tmp_path / "splitter")
    assert "Attempt 1 ended" not in log_of(tmp_path / "splitter")
    callback = answer(loc)
    assert (callback["status"], callback["downloadId"]) == ("success", 512)
    stored = client("s3").list_objects_v2(Bucket=bucket, Prefix="batch/")["Contents"]
    assert [one["Key"] for one in stored] == [f"batch/{name}" for name in callback["batchFiles"]]
    assert len(stored) == 3
    check_task(task, loc, bucket)
    check_listener(listening.task, loc)


def test_the_worker_restarts_a_listener_that_ecs_stopped(
    listening: Listening, api: SyncPrefectClient
) -> None:
    listening.process.terminate()
    assert listening.process.wait(timeout=60) == 0
    states = [state.name for state in api.read_flow_run_states(listening.run.id)]
    assert states[states.index("Running") + 1] == "AwaitingRetry"


def command_for(loc: Stack, bucket: str) -> list[str]:
    allowed = [f"ALLOWED_BUCKETS={bucket}", f"ALLOWED_QUEUES={loc['UpdatesQueueUrl']}"]
    return ["env", *allowed, "prefect", "flow-run", "execute"]


def check_task(task: Any, loc: Stack, bucket: str) -> None:
    """Compare the splitter's task with the pool's template."""
    assert task["clusterArn"] == loc["ClusterArn"]
    assert task["launchType"] == "FARGATE"
    assert task["overrides"]["taskRoleArn"] == loc["SplitterRoleArn"]
    assert (task["overrides"]["cpu"], task["overrides"]["memory"]) == ("1024", "3072")

    definition = definition_of(task)
    assert definition["family"] == "loc-biospex-batch-creator-splitter"
    assert definition["executionRoleArn"] == loc["ExecutionRoleArn"]
    assert definition["networkMode"] == "awsvpc"
    assert definition["requiresCompatibilities"] == ["FARGATE"]
    assert (definition["cpu"], definition["memory"]) == ("1024", "3072")
    assert definition["ephemeralStorage"] == {"sizeInGiB": 50}
    [volume] = definition["volumes"]
    assert volume["efsVolumeConfiguration"] == {
        "fileSystemId": loc["FileSystemId"],
        "rootDirectory": "/",
        "transitEncryption": "ENABLED",
        "authorizationConfig": {"accessPointId": loc["AccessPointId"], "iam": "ENABLED"},
    }
    [defined] = definition["containerDefinitions"]
    assert defined["image"] == IMAGE
    assert defined["mountPoints"] == [
        {"sourceVolume": volume["name"], "containerPath": "/efs/batch", "readOnly": False}
    ]
    assert (defined["cpu"], defined["memory"]) == (1024, 3072)
    assert defined["stopTimeout"] == 120
    assert defined["logConfiguration"] == {
        "logDriver": "awslogs",
        "options": {
            "awslogs-create-group": "false",
            "awslogs-group": "/ecs/loc-biospex-batch-creator",
            "awslogs-region": REGION,
            "awslogs-stream-prefix": "splitter",
            "mode": "non-blocking",
            "max-buffer-size": "10m",
        },
    }

    command, environment = container_of(task)
    assert command == command_for(loc, bucket)
    expected = {
        "AWS_REGION": REGION,
        "TRIGGER_QUEUE_URL": loc["TriggerQueueUrl"],
        "UPDATES_QUEUE_URL": loc["UpdatesQueueUrl"],
        "EFS_PATH": "/efs/batch",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
        "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
        "PREFECT_API_URL": os.environ["PREFECT_API_URL"],
        "BATCH_SIZE": "10",
    }
    assert expected.items() <= environment.items()
    assert not [name for name in environment if "SECRET" in name or "ACCESS_KEY" in name]
    assert "PREFECT_HOME" not in environment


def check_listener(task: Any, loc: Stack) -> None:
    """Compare the listener's task with the pool's template: another role, small, and no EFS."""
    assert task["overrides"]["taskRoleArn"] == loc["ListenerRoleArn"]
    assert task["launchType"] == "FARGATE"
    definition = definition_of(task)
    assert definition["family"] == "loc-biospex-batch-creator-listener"
    assert (definition["cpu"], definition["memory"]) == ("256", "1024")
    assert definition["ephemeralStorage"] == {"sizeInGiB": 21}
    assert not definition.get("volumes")
    assert not definition["containerDefinitions"][0].get("mountPoints")


@pytest.mark.usefixtures("workers")
def test_a_run_cannot_choose_its_image_command_roles_or_allowed_names(
    loc: Stack, bucket: str, api: SyncPrefectClient
) -> None:
    request = trigger(bucket, loc["UpdatesQueueUrl"])
    another = "arn:aws:iam::123456789012:role/administrator"
    chosen = {
        "image": "example.org/another:1",
        "command": "sh -c id",
        "task_role_arn": another,
        "execution_role_arn": another,
        "cluster": "another",
        "task_definition_arn": "another:1",
        "container_name": "another",
        "network_configuration": {"subnets": ["subnet-1"], "securityGroups": []},
        "family": "another",
        "cpu": 512,
        "env": {"ALLOWED_BUCKETS": "*", "ALLOWED_QUEUES": "*"},
    }
    export = started(api, "create-batches/create-batches", {"request": request}, chosen)
    task = task_of(export.id, loc["ClusterArn"])
    definition = definition_of(task)
    [defined] = definition["containerDefinitions"]
    assert (defined["name"], defined["image"]) == ("prefect", IMAGE)
    assert definition["family"] == "loc-biospex-batch-creator-splitter"
    assert definition["executionRoleArn"] == loc["ExecutionRoleArn"]
    assert task["overrides"]["taskRoleArn"] == loc["SplitterRoleArn"]
    assert "executionRoleArn" not in task["overrides"]
    assert container_of(task)[0] == command_for(loc, bucket)
    assert task["overrides"]["cpu"] == "512"  # that much it may


@pytest.mark.usefixtures("workers")
def test_a_task_on_spot_that_is_killed_makes_its_run_crashed(
    loc: Stack, bucket: str, events: str, api: SyncPrefectClient
) -> None:
    request = trigger(bucket, loc["UpdatesQueueUrl"])
    export = started(
        api, "create-batches/create-batches", {"request": request}, {"launch_type": "FARGATE_SPOT"}
    )
    task = task_of(export.id, loc["ClusterArn"])
    assert task["capacityProviderName"] == "FARGATE_SPOT"
    event = {
        "id": str(uuid4()),
        "detail-type": "ECS Task State Change",
        "source": "aws.ecs",
        "time": "2026-01-01T00:00:00Z",
        "detail": {
            "clusterArn": loc["ClusterArn"],
            "taskArn": task["taskArn"],
            "taskDefinitionArn": task["taskDefinitionArn"],
            "lastStatus": "STOPPED",
            "stoppedReason": "OutOfMemoryError: Container killed due to memory usage",
            "containers": [{"name": "prefect", "exitCode": 137, "lastStatus": "STOPPED"}],
        },
    }
    client("sqs").send_message(QueueUrl=events, MessageBody=json.dumps(event))

    def crashed() -> bool:
        return api.read_flow_run(export.id).state_name == "Crashed"

    assert eventually(crashed)
    eventually(lambda: messages(client("sqs"), events) == (0, 0))


# -- what each process asks of AWS, and what its role may


@pytest.mark.parametrize(
    ("process", "role"),
    [
        ("worker", "WorkerRoleArn"),
        ("listener", "ListenerRoleArn"),
        ("splitter", "SplitterRoleArn"),
    ],
)
def test_each_role_has_the_rights_that_its_process_uses_and_few_others(
    process: str, role: str, loc: Stack, calls: Path
) -> None:
    made = set((calls / process).read_text().split())
    needed = set().union(*(ACTIONS.get(call, {call}) for call in made))
    granted = {action for statement in grants(loc[role]) for action in listed(statement["Action"])}
    assert needed <= granted
    assert granted <= needed | SELDOM[role]


def test_private_subnets_need_an_endpoint_for_each_called_service(calls: Path) -> None:
    made = "".join((calls / process).read_text() for process in ("worker", "listener", "splitter"))
    called = {call.partition(":")[0] for call in made.split()}
    may_call = {action.partition(":")[0] for seldom in SELDOM.values() for action in seldom}
    # ECS itself needs the endpoint of logs; EFS is mounted inside the VPC.
    assert called - {"logs"} == set(CALLED["pools"])
    assert called | may_call <= {*CALLED["pools"], "logs", "elasticfilesystem"}


def test_the_worker_passes_the_roles_of_its_tasks_and_no_other(loc: Stack) -> None:
    [passing] = [one for one in grants(loc["WorkerRoleArn"]) if one["Action"] == "iam:PassRole"]
    assert set(passing["Resource"]) == {
        loc["SplitterRoleArn"],
        loc["ListenerRoleArn"],
        loc["ExecutionRoleArn"],
    }
    assert passing["Condition"] == {
        "StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}
    }
