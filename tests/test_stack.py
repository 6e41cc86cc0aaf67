"""deploy/stack.yaml, taken by moto's CloudFormation and read back from each service's own API."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
from cfnlint.decode import cfn_yaml  # type: ignore[import-untyped]

from cli.demo import REGION

pytestmark = [
    pytest.mark.usefixtures("aws"),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS"),
]

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "deploy" / "stack.yaml"
LIFECYCLE = ROOT / "deploy" / "lifecycle.json"
ACCOUNT = "123456789012"
GIVEN_QUEUE = f"arn:aws:sqs:{REGION}:{ACCOUNT}:somebody-elses"


def client(service: Any) -> Any:
    return boto3.client(service, region_name=REGION)


class Stack:
    """A stack in moto, and what is in it."""

    def __init__(self, name: str, parameters: Mapping[str, str]) -> None:
        self.name = name
        self._parameters = parameters

    def describe(self) -> Any:
        return client("cloudformation").describe_stacks(StackName=self.name)["Stacks"][0]

    def outputs(self) -> list[dict[str, str]]:
        """As ``aws cloudformation describe-stacks --query 'Stacks[0].Outputs'`` prints them.

        In place of an access point's id moto gives the name of a Python object.
        """
        found: list[dict[str, str]] = self.describe()["Outputs"]
        [file_system] = [
            output["OutputValue"] for output in found if output["OutputKey"] == "FileSystemId"
        ]
        points = client("efs").describe_access_points(FileSystemId=file_system)["AccessPoints"]
        for output in found:
            if output["OutputKey"] == "AccessPointId":
                output["OutputValue"] = points[0]["AccessPointId"]
        return found

    def __getitem__(self, output: str) -> str:
        [value] = [one["OutputValue"] for one in self.outputs() if one["OutputKey"] == output]
        return value

    def resources(self) -> dict[str, str]:
        """The id of each resource by its name in the template."""
        found = client("cloudformation").list_stack_resources(StackName=self.name)
        return {
            one["LogicalResourceId"]: one["PhysicalResourceId"]
            for one in found["StackResourceSummaries"]
        }

    def update(self, **parameters: str) -> None:
        changed = {**self._parameters, **parameters}
        client("cloudformation").update_stack(**_request(self.name, changed))


@contextmanager
def stack(environment: str, subnets: int = 2, **parameters: str) -> Iterator[Stack]:
    """The stack of an environment in a new VPC, for the length of the block."""
    ec2, name = client("ec2"), f"{environment}-biospex-batch-creator"
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
    made = [
        ec2.create_subnet(
            VpcId=vpc, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=f"{REGION}{'abc'[number]}"
        )["Subnet"]["SubnetId"]
        for number in range(subnets)
    ]
    chosen = {"Environment": environment, "VpcId": vpc, "SubnetIds": ",".join(made), **parameters}
    client("cloudformation").create_stack(**_request(name, chosen))
    try:
        yield Stack(name, chosen)
    finally:
        client("cloudformation").delete_stack(StackName=name)


def _request(name: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    return {
        "StackName": name,
        "TemplateBody": TEMPLATE.read_text(),
        "Parameters": [
            {"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()
        ],
        "Capabilities": ["CAPABILITY_IAM"],
    }


@pytest.fixture(scope="module")
def dev(aws: str) -> Iterator[Stack]:
    with stack("dev") as made:
        yield made


def properties(resource: str) -> Any:
    """A resource's properties as the template has them; moto leaves some of them out."""
    return cfn_yaml.load(str(TEMPLATE))["Resources"][resource]["Properties"]


def test_names_and_outputs_are_those_of_the_environment(dev: Stack) -> None:
    assert dev.describe()["StackStatus"] == "CREATE_COMPLETE"
    outputs = {one["OutputKey"]: one["OutputValue"] for one in dev.outputs()}
    queues = f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}"
    resources = dev.resources()
    assert outputs == {
        "TriggerQueueUrl": f"{queues}/dev-batch-trigger",
        "DeadLetterQueueUrl": f"{queues}/dev-batch-trigger-dead",
        "UpdatesQueueUrl": f"{queues}/dev-batch-update",
        "UpdatesQueueArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:dev-batch-update",
        "BucketName": "biospex-dev",
        "RepositoryUri": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/dev-biospex-batch-creator",
        "ClusterArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/dev-biospex-batch-creator",
        "LogGroupName": "/ecs/dev-biospex-batch-creator",
        "TaskRoleArn": f"arn:aws:iam::{ACCOUNT}:role/{resources['TaskRole']}",
        "ExecutionRoleArn": f"arn:aws:iam::{ACCOUNT}:role/{resources['ExecutionRole']}",
        "FileSystemId": resources["FileSystem"],
        "AccessPointId": outputs["AccessPointId"],
        "VpcId": outputs["VpcId"],
        "SubnetIds": outputs["SubnetIds"],
        "TaskSecurityGroupId": resources["TaskSecurityGroup"],
    }


def test_an_existing_bucket_and_callback_queue_are_taken_as_they_are() -> None:
    with stack("prod", BucketName="another", UpdatesQueueArn=GIVEN_QUEUE) as prod:
        assert prod["BucketName"] == "another"
        assert prod["UpdatesQueueArn"] == GIVEN_QUEUE
        assert prod["UpdatesQueueUrl"] == (
            f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/somebody-elses"
        )
        assert "UpdatesQueue" not in prod.resources()
        granted = grants(prod["TaskRoleArn"])
        assert is_allowed(granted, "sqs:SendMessage", GIVEN_QUEUE)
        assert is_allowed(granted, "s3:GetObject", "arn:aws:s3:::another/export/a.zip")


def test_queues_are_encrypted_patient_and_have_a_redrive_policy(dev: Stack) -> None:
    def attributes(output: str) -> dict[str, str]:
        found = client("sqs").get_queue_attributes(QueueUrl=dev[output], AttributeNames=["All"])
        return dict(found["Attributes"])

    trigger, dead = attributes("TriggerQueueUrl"), attributes("DeadLetterQueueUrl")
    assert trigger["VisibilityTimeout"] == "300"
    assert json.loads(trigger["RedrivePolicy"]) == {
        "deadLetterTargetArn": dead["QueueArn"],
        "maxReceiveCount": 10,
    }
    for queue in (trigger, dead, attributes("UpdatesQueueUrl")):
        assert queue["MessageRetentionPeriod"] == str(14 * 24 * 3600)
        assert queue["SqsManagedSseEnabled"] == "true"


@pytest.mark.parametrize("subnets", [1, 2, 3])
def test_efs_has_a_mount_target_in_each_subnet(subnets: int) -> None:
    with stack("prod", subnets) as prod:
        found = client("efs").describe_mount_targets(FileSystemId=prod["FileSystemId"])
        made = [target["SubnetId"] for target in found["MountTargets"]]
        assert sorted(made) == sorted(prod["SubnetIds"].split(","))
        for target in found["MountTargets"]:
            groups = client("efs").describe_mount_target_security_groups(
                MountTargetId=target["MountTargetId"]
            )
            assert groups["SecurityGroups"] == [prod.resources()["FileSystemSecurityGroup"]]


def test_efs_is_encrypted_and_entered_as_the_images_user(dev: Stack) -> None:
    efs = client("efs")
    [system] = efs.describe_file_systems(FileSystemId=dev["FileSystemId"])["FileSystems"]
    assert system["Encrypted"]
    assert system["ThroughputMode"] == "elastic"
    lifecycle = efs.describe_lifecycle_configuration(FileSystemId=dev["FileSystemId"])
    assert lifecycle["LifecyclePolicies"] == [{"TransitionToIA": "AFTER_7_DAYS"}]
    [point] = efs.describe_access_points(FileSystemId=dev["FileSystemId"])["AccessPoints"]
    assert point["PosixUser"] == {"Uid": 1000, "Gid": 1000}
    assert point["RootDirectory"]["Path"] == "/batch"
    assert point["RootDirectory"]["CreationInfo"]["OwnerUid"] == 1000
    assert "--uid 1000" in (ROOT / "Dockerfile").read_text()


def test_only_tasks_reach_efs_and_nothing_reaches_tasks(dev: Stack) -> None:
    resources = dev.resources()

    def ingress(group: str) -> Any:
        found = client("ec2").describe_security_groups(GroupIds=[resources[group]])
        return found["SecurityGroups"][0]["IpPermissions"]

    assert ingress("TaskSecurityGroup") == []
    [rule] = ingress("FileSystemSecurityGroup")
    assert (rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) == ("tcp", 2049, 2049)
    assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [dev["TaskSecurityGroupId"]]
    assert rule["IpRanges"] == []


def test_images_logs_and_cluster_are_there(dev: Stack) -> None:
    name = "dev-biospex-batch-creator"
    [repository] = client("ecr").describe_repositories(repositoryNames=[name])["repositories"]
    assert repository["repositoryUri"] == dev["RepositoryUri"]
    [group] = client("logs").describe_log_groups(logGroupNamePrefix=f"/ecs/{name}")["logGroups"]
    assert group["retentionInDays"] == 90
    [cluster] = client("ecs").describe_clusters(clusters=[dev["ClusterArn"]])["clusters"]
    assert cluster["status"] == "ACTIVE"


def test_what_motos_cloudformation_leaves_out_is_taken_by_the_services(dev: Stack) -> None:
    repository = properties("Repository")
    ecr, name = client("ecr"), "dev-biospex-batch-creator"
    assert repository["ImageScanningConfiguration"] == {"ScanOnPush": True}
    policy = repository["LifecyclePolicy"]["LifecyclePolicyText"]
    ecr.put_lifecycle_policy(repositoryName=name, lifecyclePolicyText=policy)
    [rule] = json.loads(ecr.get_lifecycle_policy(repositoryName=name)["lifecyclePolicyText"])[
        "rules"
    ]
    assert rule["selection"]["countType"] == "imageCountMoreThan"
    assert rule["selection"]["countNumber"] == 10

    client("ecs").put_cluster_capacity_providers(
        cluster=dev["ClusterArn"],
        capacityProviders=properties("Cluster")["CapacityProviders"],
        defaultCapacityProviderStrategy=[],
    )
    [cluster] = client("ecs").describe_clusters(clusters=[dev["ClusterArn"]])["clusters"]
    assert cluster["capacityProviders"] == ["FARGATE", "FARGATE_SPOT"]

    [statement] = properties("FileSystem")["FileSystemPolicy"]["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


@pytest.mark.parametrize(
    ("alarm", "metric", "queue", "limit"),
    [
        ("DeadLetterAlarm", "ApproximateNumberOfMessagesVisible", "dev-batch-trigger-dead", 0),
        ("OldTriggerAlarm", "ApproximateAgeOfOldestMessage", "dev-batch-trigger", 3600),
    ],
)
def test_alarms_watch_the_queues(
    alarm: str, metric: str, queue: str, limit: float, dev: Stack
) -> None:
    asked = dict(properties(alarm))
    [dimension] = asked["Dimensions"]
    [source, attribute] = dimension["Value"]["Fn::GetAtt"]
    assert (attribute, dev.resources()[source].rpartition("/")[2]) == ("QueueName", queue)
    [condition, given, otherwise] = asked["AlarmActions"]["Fn::If"]
    assert (condition, given) == ("HasAlarmTopic", [{"Ref": "AlarmTopicArn"}])
    assert otherwise == {"Ref": "AWS::NoValue"}

    asked["AlarmName"] = alarm
    asked["Dimensions"] = [{"Name": dimension["Name"], "Value": queue}]
    asked["AlarmActions"] = [f"arn:aws:sns:{REGION}:{ACCOUNT}:operator"]
    client("cloudwatch").put_metric_alarm(**asked)
    [made] = client("cloudwatch").describe_alarms(AlarmNames=[alarm])["MetricAlarms"]
    assert (made["Namespace"], made["MetricName"]) == ("AWS/SQS", metric)
    assert (made["ComparisonOperator"], made["Threshold"]) == ("GreaterThanThreshold", limit)
    assert (made["Statistic"], made["TreatMissingData"]) == ("Maximum", "notBreaching")


def test_an_update_keeps_what_is_in_the_queue() -> None:
    with stack("prod") as prod:
        before, url = prod.outputs(), prod["TriggerQueueUrl"]
        client("sqs").send_message(QueueUrl=url, MessageBody="{}")
        topic = f"arn:aws:sns:{REGION}:{ACCOUNT}:operator"
        prod.update(AlarmTopicArn=topic)
        described = prod.describe()
        assert described["StackStatus"] == "UPDATE_COMPLETE"
        assert {"ParameterKey": "AlarmTopicArn", "ParameterValue": topic} in described["Parameters"]
        assert prod.outputs() == before
        [message] = client("sqs").receive_message(QueueUrl=url)["Messages"]
        assert message["Body"] == "{}"


# -- what the roles may do

ARCHIVE = "arn:aws:s3:::biospex-dev/export/a.zip"
BATCH = "arn:aws:s3:::biospex-dev/batch/a-part1.zip"
BUCKET = "arn:aws:s3:::biospex-dev"
TRIGGERS = f"arn:aws:sqs:{REGION}:{ACCOUNT}:dev-batch-trigger"
UPDATES = f"arn:aws:sqs:{REGION}:{ACCOUNT}:dev-batch-update"

# Every call of splitter and what it needs, after the service authorization reference:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
NEEDS = {
    "head_object": {("s3:GetObject", ARCHIVE), ("s3:GetObject", BATCH), ("s3:ListBucket", BUCKET)},
    "download_file": {("s3:GetObject", ARCHIVE)},
    "get_object": {("s3:GetObject", ARCHIVE), ("s3:GetObject", BATCH)},
    "put_object": {("s3:PutObject", BATCH)},
    "create_multipart_upload": {("s3:PutObject", BATCH)},
    "upload_part": {("s3:PutObject", BATCH)},
    "upload_part_copy": {("s3:GetObject", ARCHIVE), ("s3:PutObject", BATCH)},
    "complete_multipart_upload": {("s3:PutObject", BATCH)},
    "abort_multipart_upload": {("s3:AbortMultipartUpload", BATCH)},
    "get_paginator": {("s3:ListBucketMultipartUploads", BUCKET)},  # of that alone
    "delete_object": {("s3:DeleteObject", BATCH)},
    "get_queue_attributes": {("sqs:GetQueueAttributes", TRIGGERS)},
    "receive_message": {("sqs:ReceiveMessage", TRIGGERS)},
    "change_message_visibility": {("sqs:ChangeMessageVisibility", TRIGGERS)},
    "delete_message": {("sqs:DeleteMessage", TRIGGERS)},
    "send_message": {("sqs:SendMessage", UPDATES)},
}


def grants(role_arn: str) -> list[dict[str, Any]]:
    """The statements of a role's policies."""
    iam, role = client("iam"), role_arn.rpartition("/")[2]
    assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    statements = []
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        # From CloudFormation moto keeps a document as Python writes it, not as JSON.
        policy = ast.literal_eval(document) if isinstance(document, str) else document
        statements += policy["Statement"]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    return statements


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def is_allowed(statements: list[dict[str, Any]], action: str, resource: str) -> bool:
    """Whether some statement allows it, its condition aside."""
    return any(
        action in listed(statement["Action"])
        and any(fnmatchcase(resource, pattern) for pattern in listed(statement["Resource"]))
        for statement in statements
    )


@pytest.fixture(scope="module")
def task_role(dev: Stack) -> list[dict[str, Any]]:
    return grants(dev["TaskRoleArn"])


def test_a_task_may_do_what_the_code_does_and_no_more(task_role: list[dict[str, Any]]) -> None:
    sources = (ROOT / "splitter").glob("*.py")
    calls = {
        call for source in sources for call in re.findall(r"client\.(\w+)", source.read_text())
    }
    assert calls == set(NEEDS)
    needed = set().union(*NEEDS.values())
    assert all(is_allowed(task_role, action, resource) for action, resource in needed)
    granted = {action for statement in task_role for action in listed(statement["Action"])}
    mounting = {"elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"}
    assert granted == {action for action, _ in needed} | mounting
    assert not any("*" in action for action in granted)


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("s3:PutObject", ARCHIVE),
        ("s3:DeleteObject", ARCHIVE),
        ("s3:AbortMultipartUpload", ARCHIVE),
        ("s3:GetObject", f"{BUCKET}/other/a.zip"),
        ("s3:PutObject", f"{BUCKET}/other/a.zip"),
        ("s3:GetObject", "arn:aws:s3:::biospex-app/export/a.zip"),
        ("s3:PutObject", "arn:aws:s3:::biospex-app/batch/a-part1.zip"),
        ("s3:ListBucket", "arn:aws:s3:::biospex-app"),
        ("sqs:SendMessage", TRIGGERS),
        ("sqs:SendMessage", f"arn:aws:sqs:{REGION}:{ACCOUNT}:prod-batch-update"),
        ("sqs:ReceiveMessage", UPDATES),
        ("sqs:ReceiveMessage", f"{TRIGGERS}-dead"),
    ],
)
def test_a_task_may_touch_nothing_else(
    action: str, resource: str, task_role: list[dict[str, Any]]
) -> None:
    assert not is_allowed(task_role, action, resource)


def test_a_task_lists_and_mounts_only_what_is_its_own(
    task_role: list[dict[str, Any]], dev: Stack
) -> None:
    [listing] = [one for one in task_role if one["Action"] == "s3:ListBucket"]
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["export/*", "batch/*"]}}
    [mounting] = [one for one in task_role if "elasticfilesystem:ClientMount" in one["Action"]]
    assert mounting["Resource"].endswith(f":{ACCOUNT}:file-system/{dev['FileSystemId']}")
    [[condition, points]] = mounting["Condition"].items()
    assert (condition, list(points)) == ("StringEquals", ["elasticfilesystem:AccessPointArn"])


def test_ecs_may_fetch_the_image_and_write_the_log_and_no_more(dev: Stack) -> None:
    granted = grants(dev["ExecutionRoleArn"])
    image = f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/dev-biospex-batch-creator"
    log = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{dev['LogGroupName']}:log-stream:a/b/c"
    assert {action for statement in granted for action in listed(statement["Action"])} == {
        "ecr:GetAuthorizationToken",
        "ecr:BatchCheckLayerAvailability",
        "ecr:GetDownloadUrlForLayer",
        "ecr:BatchGetImage",
        "logs:CreateLogStream",
        "logs:PutLogEvents",
    }
    assert is_allowed(granted, "ecr:BatchGetImage", image)
    assert not is_allowed(granted, "ecr:BatchGetImage", image.replace("dev-", "prod-"))
    assert is_allowed(granted, "logs:PutLogEvents", log)
    assert not is_allowed(granted, "logs:PutLogEvents", log.replace("dev-", "prod-"))


@pytest.mark.parametrize("output", ["TaskRoleArn", "ExecutionRoleArn"])
def test_only_tasks_of_this_account_take_a_role(output: str, dev: Stack) -> None:
    role = client("iam").get_role(RoleName=dev[output].rpartition("/")[2])["Role"]
    [statement] = role["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "ecs-tasks.amazonaws.com"}
    assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}


# -- the proposal for the bucket


def test_the_lifecycle_proposal_is_taken_and_leaves_exports_alone(
    s3: Any, bucket_name: str
) -> None:
    proposal = json.loads(LIFECYCLE.read_text())
    s3.put_bucket_lifecycle_configuration(Bucket=bucket_name, LifecycleConfiguration=proposal)
    rules = s3.get_bucket_lifecycle_configuration(Bucket=bucket_name)["Rules"]
    assert all(rule["Status"] == "Enabled" for rule in rules)
    assert all(rule["Filter"] == {"Prefix": "batch/"} for rule in rules)
    [expiry] = [rule["Expiration"]["Days"] for rule in rules if "Expiration" in rule]
    assert expiry * 24 > 72  # hours that BIOSPEX's links live
    [uploads] = [one for rule in rules if (one := rule.get("AbortIncompleteMultipartUpload"))]
    assert uploads == {"DaysAfterInitiation": 2}
