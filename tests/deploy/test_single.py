"""The shape single: the stack's one task splits an export, from the trigger to the callback."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools import services as local
from flows.create_batches import STATE_NAMES
from splitter.sentences import Actor
from tests.conftest import EXPORTS
from tests.helpers.biospex import client, messages
from tests.helpers.containers import ROOT, container, log_of
from tests.helpers.processes import eventually
from tests.helpers.stacks import (
    ACTIONS,
    CALLED,
    IMAGE,
    SELDOM,
    TEMPLATE,
    Stack,
    grants,
    listed,
    properties,
    stack,
    worker_containers,
)

pytestmark = [
    pytest.mark.usefixtures("aws", "prefect_api"),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS"),
]


@pytest.fixture(scope="module")
def single(bucket: str, prefect_api: dict[str, str]) -> Iterator[Stack]:
    with stack(
        "loc",
        Shape="single",
        BucketName=bucket,
        WorkerImage=IMAGE,
        PrefectApiUrl=prefect_api["PREFECT_API_URL"],
        FlowSettings="BATCH_SIZE=10 ALLOWED_BUCKETS=bucket-*",
    ) as made:
        yield made


def test_the_container_splits_an_export_with_the_environment_of_the_stack(
    single: Stack, bucket: str, tmp_path: Path
) -> None:
    [defined] = worker_containers(single)
    environment = {one["name"]: one["value"] for one in defined["environment"]}
    assert not [name for name in environment if "SECRET" in name or "ACCESS_KEY" in name]
    sqs, archive = client("sqs"), EXPORTS[0]
    client("s3").upload_file(str(archive), bucket, f"export/{archive.name}")
    request = {**local.trigger(512, archive, single["UpdatesQueueUrl"]), "s3Bucket": bucket}
    sqs.send_message(QueueUrl=single["TriggerQueueUrl"], MessageBody=json.dumps(request))
    home, calls = tmp_path / "single", tmp_path / "calls"
    calls.mkdir()
    with container(defined["command"], environment, home, calls) as process:

        def is_over() -> bool:
            is_answered = messages(sqs, single["TriggerQueueUrl"]) == (0, 0)
            return process.poll() is not None or (is_answered and '"exports": 1' in log_of(home))

        eventually(is_over)
        assert process.poll() is None, log_of(home)
    [message] = sqs.receive_message(QueueUrl=single["UpdatesQueueUrl"])["Messages"]
    callback = json.loads(message["Body"])
    assert (callback["status"], callback["downloadId"]) == ("success", 512)
    assert len(callback["batchFiles"]) == 3
    stored = client("s3").list_objects_v2(Bucket=bucket, Prefix="batch/")["Contents"]
    assert [one["Key"] for one in stored] == [f"batch/{name}" for name in callback["batchFiles"]]
    check_log(log_of(home))
    made = set((calls / home.name).read_text().split())
    needed = set().union(*(ACTIONS.get(call, {call}) for call in made))
    granted = {
        action
        for statement in grants(single.resources()["SingleRole"])
        for action in listed(statement["Action"])
    }
    assert needed <= granted
    assert {call.partition(":")[0] for call in made} == set(CALLED["single"])
    assert granted <= needed | SELDOM["SplitterRoleArn"] | SELDOM["ListenerRoleArn"]


def check_log(log: str) -> None:
    """The lines have the fields by which the stack's metric filters and dashboard find them."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    [ended] = [line for line in lines if line.get("exports") == 1]
    assert ended["outcome"] == "Completed"
    assert (ended["download_id"], ended["rows"], ended["batches"]) == (512, 25, 3)
    body = properties("Dashboard")["DashboardBody"]["Fn::Sub"][0]
    [shown] = re.findall(r"filter ispresent\(exports\) \| fields @timestamp, ([a-z_, ]+) \|", body)
    assert set(shown.split(", ")) <= set(ended)
    of_listener = [line for line in lines if line.get("flow_name") == "listen"]
    assert of_listener
    assert all(line["levelno"] < logging.ERROR for line in of_listener)


def test_the_alarm_counts_only_outcomes_that_are_final() -> None:
    pattern = properties("FailedExports")["FilterPattern"]
    assert '($.outcome != "Completed*") && ($.outcome != "Failed")' in pattern
    final = {name for actor, name in STATE_NAMES.items() if actor is not Actor.NOBODY}
    assert final == {"Export refused", "Request refused", "Needs operator"}
    of_listener = properties("ListenerErrors")["FilterPattern"]
    assert of_listener == f'{{ ($.flow_name = "listen") && ($.levelno >= {logging.ERROR}) }}'


def test_without_settings_the_command_is_the_images_own() -> None:
    """The other side of CloudFormation's condition; the test above has settings."""
    [defined] = properties("SingleTaskDefinition")["ContainerDefinitions"]
    condition, given, otherwise = defined["Command"]["Fn::If"]
    assert (condition, otherwise) == ("HasFlowSettings", {"Ref": "AWS::NoValue"})
    [command] = re.findall(r"^CMD (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert given == ["sh", "-c", f"set -f; exec env $FLOW_SETTINGS {' '.join(json.loads(command))}"]


def test_one_shape_has_nothing_of_the_other(single: Stack) -> None:
    found = set(single.resources())
    assert {"SingleRole", "SingleTaskDefinition", "WorkerService"} <= found
    pools = {"SplitterRole", "ListenerRole", "WorkerRole", "WorkerTaskDefinition", "TaskEventsRule"}
    assert not pools & found


def test_the_old_task_stops_before_the_next_one_starts() -> None:
    """Two tasks would work on the same exports."""
    deployment = properties("WorkerService")["DeploymentConfiguration"]
    assert deployment["MinimumHealthyPercent"] == {"Fn::If": ["IsSingle", 0, 100]}
    assert deployment["MaximumPercent"] == {"Fn::If": ["IsSingle", 100, 200]}


def test_cloudformation_takes_the_template_without_a_bucket_for_it() -> None:
    """https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html"""
    assert TEMPLATE.stat().st_size <= 51_200
