"""deploy/stack.yaml in moto's CloudFormation, read back from each service's own API."""

import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import pytest

from devtools.services import REGION
from tests.helpers.biospex import Biospex, client
from tests.helpers.stacks import (
    ACCOUNT,
    ROOT,
    Stack,
    grants,
    listed,
    properties,
    stack,
    template,
)

pytestmark = [
    pytest.mark.usefixtures("aws"),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS"),
]

LIFECYCLE = ROOT / "deploy" / "lifecycle.json"
QUEUE = f"arn:aws:sqs:{REGION}:{ACCOUNT}"
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/"
SECRET = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:prefect-1"


@pytest.fixture(scope="module")
def dev(aws: str) -> Iterator[Stack]:
    with stack("dev") as made:
        yield made


def test_names_and_outputs_are_those_of_the_environment(dev: Stack) -> None:
    assert dev.describe()["StackStatus"] == "CREATE_COMPLETE"
    outputs = {one["OutputKey"]: one["OutputValue"] for one in dev.outputs()}
    queues = f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}"
    resources = dev.resources()
    assert outputs == {
        "Environment": "dev",
        "TriggerQueueUrl": f"{queues}/dev-batch-trigger",
        "TriggerQueueArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:dev-batch-trigger",
        "DeadLetterQueueUrl": f"{queues}/dev-batch-trigger-dead",
        "DeadLetterQueueArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:dev-batch-trigger-dead",
        "UpdatesQueueUrl": f"{queues}/dev-batch-update",
        "UpdatesQueueArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:dev-batch-update",
        "BucketName": "biospex-dev",
        "RepositoryUri": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/dev-biospex-batch-creator",
        "ClusterArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/dev-biospex-batch-creator",
        "LogGroupName": "/ecs/dev-biospex-batch-creator",
        "SplitterRoleArn": f"arn:aws:iam::{ACCOUNT}:role/{resources['SplitterRole']}",
        "ListenerRoleArn": f"arn:aws:iam::{ACCOUNT}:role/{resources['ListenerRole']}",
        "WorkerRoleArn": f"arn:aws:iam::{ACCOUNT}:role/{resources['WorkerRole']}",
        "ExecutionRoleArn": f"arn:aws:iam::{ACCOUNT}:role/{resources['ExecutionRole']}",
        "FileSystemId": resources["FileSystem"],
        "AccessPointId": outputs["AccessPointId"],
        "VpcId": outputs["VpcId"],
        "AssignPublicIp": "ENABLED",
        "TaskEventsQueueUrl": f"{queues}/dev-biospex-task-events",
        "SubnetIds": outputs["SubnetIds"],
        "TaskSecurityGroupId": resources["TaskSecurityGroup"],
    }


def test_queues_are_encrypted_and_have_retention_and_redrive_policies(dev: Stack) -> None:
    def attributes(output: str) -> dict[str, str]:
        found = client("sqs").get_queue_attributes(QueueUrl=dev[output], AttributeNames=["All"])
        return dict(found["Attributes"])

    trigger, dead = attributes("TriggerQueueUrl"), attributes("DeadLetterQueueUrl")
    assert trigger["VisibilityTimeout"] == "300"
    assert json.loads(trigger["RedrivePolicy"]) == {
        "deadLetterTargetArn": dead["QueueArn"],
        "maxReceiveCount": 1000,
    }
    updates, events = attributes("UpdatesQueueUrl"), attributes("TaskEventsQueueUrl")
    for queue, redrives_to in (
        (trigger, "dev-batch-trigger-dead"),
        (updates, "dev-batch-update-dead"),
        (events, "dev-biospex-task-events-dead"),
    ):
        assert queue["MessageRetentionPeriod"] == str(7 * 24 * 3600)
        assert json.loads(queue["RedrivePolicy"])["deadLetterTargetArn"].endswith(f":{redrives_to}")
    # A dead letter's age counts from its first sending.
    assert dead["MessageRetentionPeriod"] == str(14 * 24 * 3600)
    for queue in (trigger, dead, updates, events):
        assert queue["SqsManagedSseEnabled"] == "true"


def check_mount_targets(made: Stack, number: int) -> None:
    found = client("efs").describe_mount_targets(FileSystemId=made["FileSystemId"])["MountTargets"]
    assert len(found) == number
    assert sorted(one["SubnetId"] for one in found) == sorted(made["SubnetIds"].split(","))
    for target in found:
        groups = client("efs").describe_mount_target_security_groups(
            MountTargetId=target["MountTargetId"]
        )
        assert groups["SecurityGroups"] == [made.resources()["FileSystemSecurityGroup"]]


def test_efs_has_a_mount_target_in_each_subnet(dev: Stack, given: Stack) -> None:
    check_mount_targets(dev, 2)
    check_mount_targets(given, 3)


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


def test_repository_log_group_and_cluster_exist(dev: Stack) -> None:
    name = "dev-biospex-batch-creator"
    [repository] = client("ecr").describe_repositories(repositoryNames=[name])["repositories"]
    assert repository["repositoryUri"] == dev["RepositoryUri"]
    [group] = client("logs").describe_log_groups(logGroupNamePrefix=f"/ecs/{name}")["logGroups"]
    assert group["retentionInDays"] == 90
    [cluster] = client("ecs").describe_clusters(clusters=[dev["ClusterArn"]])["clusters"]
    assert cluster["status"] == "ACTIVE"


def test_the_services_accept_the_properties_that_motos_cloudformation_omits(dev: Stack) -> None:
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


def resolved(value: Any, values: Mapping[str, Any]) -> Any:
    """A part of the template with references and conditions of ``values`` filled in."""
    if isinstance(value, dict) and len(value) == 1:
        [(function, argument)] = value.items()
        if function in ("Ref", "Fn::GetAtt", "Fn::Sub"):
            name = ".".join(argument) if isinstance(argument, list) else argument
            return values[name]
        if function == "Fn::If":
            return resolved(argument[1 if values[argument[0]] else 2], values)
    if isinstance(value, dict):
        return {key: resolved(one, values) for key, one in value.items()}
    if isinstance(value, list):
        return [resolved(one, values) for one in value]
    return value


ALARMS = {
    "DeadLetterAlarm": ("dev-batch-trigger-dead", "GreaterThanThreshold", 0, "notBreaching"),
    "OldTriggerAlarm": ("dev-batch-trigger-age", "GreaterThanThreshold", 3600, "notBreaching"),
    "UnreadCallbackAlarm": ("dev-batch-update-age", "GreaterThanThreshold", 3600, "notBreaching"),
    "DeadCallbackAlarm": ("dev-batch-update-dead", "GreaterThanThreshold", 0, "notBreaching"),
    "DeadTaskEventAlarm": ("dev-task-events-dead", "GreaterThanThreshold", 0, "notBreaching"),
    "WorkerDownAlarm": ("dev-worker-down", "LessThanThreshold", 1, "breaching"),
    "ListenerDownAlarm": ("dev-listener-down", "LessThanThreshold", 1, "breaching"),
    "FailedRunsAlarm": ("dev-runs-failed", "GreaterThanThreshold", 0, "notBreaching"),
}


def test_the_dashboard_shows_every_alarm() -> None:
    resources = template()["Resources"]
    found = {name for name, one in resources.items() if one["Type"] == "AWS::CloudWatch::Alarm"}
    assert found == set(ALARMS)
    body = resources["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"][0]
    shown = {f"dev-{name}" for name in re.findall(r"{Alarm}:\${Environment}-([a-z-]+)", body)}
    assert shown == {name for name, *_ in ALARMS.values()}
    json.loads(body)


@pytest.mark.parametrize("alarm", list(ALARMS))
def test_cloudwatch_accepts_each_alarm_and_its_topic(alarm: str) -> None:
    name, comparison, limit, missing = ALARMS[alarm]
    topic = f"arn:aws:sns:{REGION}:{ACCOUNT}:operator"
    names = [f"{one}.QueueName" for one in ("TriggerQueue", "DeadLetterQueue", "UpdatesQueue")]
    values = {
        **dict.fromkeys([*names, "UpdatesDeadLetterQueue.QueueName"], "a-queue"),
        "TaskEventsDeadLetterQueue.QueueName": "a-queue",
        "${Environment}-" + name.removeprefix("dev-"): name,
        "biospex/${Environment}": "biospex/dev",
        "Cluster": "a-cluster",
        "WorkerService.Name": "a-service",
        "MakesTriggerQueue": True,
        "MakesUpdatesQueue": True,
        "HasAlarmTopic": True,
        "AlarmTopicArn": topic,
    }
    client("cloudwatch").put_metric_alarm(**resolved(properties(alarm), values))
    [made] = client("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"]
    assert (made["ComparisonOperator"], made["Threshold"]) == (comparison, limit)
    assert made["TreatMissingData"] == missing
    assert made["AlarmActions"] == [topic]


def test_production_needs_an_alarm_topic() -> None:
    [rule] = template()["Rules"].values()
    assert rule["RuleCondition"] == {"Fn::Equals": [{"Ref": "Environment"}, "prod"]}
    assert "AlarmTopicArn" in str(rule["Assertions"])


@pytest.fixture(scope="module")
def given(aws: str) -> Iterator[Stack]:
    """A stack of production with everything that may exist already."""
    with stack(
        "prod",
        subnets=3,
        BucketName="another",
        BucketKeyArn=f"{KEY}bucket",
        TriggerQueueArn=f"{QUEUE}:triggers",
        TriggerQueueKeyArn=f"{KEY}triggers",
        UpdatesQueueArn=f"{QUEUE}:updates",
        UpdatesQueueKeyArn=f"{KEY}updates",
        PrefectSecretArn=SECRET,
        SecretKeyArn=f"{KEY}secret",
    ) as made:
        yield made


def test_an_existing_bucket_and_existing_queues_are_used(given: Stack) -> None:
    assert not {"TriggerQueue", "UpdatesQueue"} & set(given.resources())
    assert given["BucketName"] == "another"
    urls = f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}"
    for output, name in (("TriggerQueue", "triggers"), ("UpdatesQueue", "updates")):
        assert given[f"{output}Arn"] == f"{QUEUE}:{name}"
        assert given[f"{output}Url"] == f"{urls}/{name}"
    splitter, listener = grants(given["SplitterRoleArn"]), grants(given["ListenerRoleArn"])
    assert is_allowed(splitter, "s3:GetObject", "arn:aws:s3:::another/export/a.zip")
    assert is_allowed(splitter, "sqs:SendMessage", f"{QUEUE}:updates")
    assert is_allowed(listener, "sqs:DeleteMessage", f"{QUEUE}:triggers")


def test_roles_may_use_the_keys_of_bucket_queues_and_secret(given: Stack) -> None:
    listener, splitter, execution = (
        grants(given[f"{role}RoleArn"]) for role in ("Listener", "Splitter", "Execution")
    )
    assert is_allowed(splitter, "kms:Decrypt", f"{KEY}bucket")
    assert is_allowed(splitter, "kms:GenerateDataKey", f"{KEY}bucket")
    assert is_allowed(listener, "kms:Decrypt", f"{KEY}triggers")
    for granted in (listener, splitter):  # both answer
        assert is_allowed(granted, "kms:Decrypt", f"{KEY}updates")
        assert is_allowed(granted, "kms:GenerateDataKey", f"{KEY}updates")
    assert is_allowed(execution, "secretsmanager:GetSecretValue", SECRET)
    assert given["PrefectApiAuthStringSecretArn"] == SECRET
    assert "PrefectApiKeySecretArn" not in str(given.outputs())
    assert is_allowed(execution, "kms:Decrypt", f"{KEY}secret")
    assert not is_allowed(splitter, "kms:Decrypt", f"{KEY}triggers")
    assert not is_allowed(splitter, "kms:Decrypt", f"{KEY}secret")


def test_an_update_and_the_removal_keep_messages_files_and_log() -> None:
    api = "https://api.prefect.cloud/api/accounts/1/workspaces/2"
    with stack("loc", subnets=1, PrefectApiUrl=api, PrefectSecretArn=SECRET) as loc:
        # Prefect Cloud takes a key, another API an auth string.
        assert loc["PrefectApiKeySecretArn"] == SECRET
        check_mount_targets(loc, 1)
        before, url, sqs = loc.outputs(), loc["TriggerQueueUrl"], client("sqs")
        sqs.send_message(QueueUrl=url, MessageBody="{}")
        topic = f"arn:aws:sns:{REGION}:{ACCOUNT}:operator"
        loc.update(AlarmTopicArn=topic)
        described = loc.describe()
        assert described["StackStatus"] == "UPDATE_COMPLETE"
        assert {"ParameterKey": "AlarmTopicArn", "ParameterValue": topic} in described["Parameters"]
        assert loc.outputs() == before
        files, log = loc["FileSystemId"], loc["LogGroupName"]
        client("cloudformation").delete_stack(StackName=loc.name)
        [message] = sqs.receive_message(QueueUrl=url)["Messages"]
        assert message["Body"] == "{}"
        assert client("efs").describe_file_systems(FileSystemId=files)["FileSystems"]
        assert client("logs").describe_log_groups(logGroupNamePrefix=log)["logGroups"]


HOLDS_STATE = ("AWS::SQS::Queue", "AWS::EFS::FileSystem", "AWS::Logs::LogGroup")


def test_resources_with_state_are_retained() -> None:
    resources = template()["Resources"]
    kept = {name for name, one in resources.items() if one["Type"] in HOLDS_STATE}
    assert len(kept) == 8
    for name in kept:
        assert resources[name]["DeletionPolicy"] == "Retain", name
        assert resources[name]["UpdateReplacePolicy"] == "Retain", name


def test_only_the_events_of_this_cluster_reach_the_worker(dev: Stack) -> None:
    rule = client("events").describe_rule(Name="dev-biospex-task-events")
    assert json.loads(rule["EventPattern"]) == {
        "source": ["aws.ecs"],
        "detail-type": ["ECS Task State Change"],
        "detail": {"clusterArn": [dev["ClusterArn"]]},
    }
    targets = client("events").list_targets_by_rule(Rule="dev-biospex-task-events")["Targets"]
    assert [target["Arn"].rpartition(":")[2] for target in targets] == ["dev-biospex-task-events"]
    [statement] = properties("TaskEventsQueuePolicy")["PolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "events.amazonaws.com"}
    assert statement["Condition"] == {
        "ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": ["TaskEventsRule", "Arn"]}}
    }


# -- what the roles may do

ARCHIVE = "arn:aws:s3:::biospex-dev/export/a.zip"
BATCH = "arn:aws:s3:::biospex-dev/batch/a-part1.zip"
BUCKET = "arn:aws:s3:::biospex-dev"
TRIGGERS = f"arn:aws:sqs:{REGION}:{ACCOUNT}:dev-batch-trigger"
UPDATES = f"arn:aws:sqs:{REGION}:{ACCOUNT}:dev-batch-update"


def is_allowed(statements: list[dict[str, Any]], action: str, resource: str) -> bool:
    """Whether some statement allows the action, apart from its condition."""
    return any(
        action in listed(statement["Action"])
        and any(fnmatchcase(resource, pattern) for pattern in listed(statement["Resource"]))
        for statement in statements
    )


# Which calls each process makes, test_ecs_worker.py holds against these.
MAY = {
    "SplitterRoleArn": [
        ("s3:GetObject", ARCHIVE),
        ("s3:GetObject", BATCH),
        ("s3:PutObject", BATCH),
        ("s3:DeleteObject", BATCH),
        ("s3:AbortMultipartUpload", BATCH),
        ("s3:ListBucket", BUCKET),
        ("s3:ListBucketMultipartUploads", BUCKET),
        ("sqs:SendMessage", UPDATES),
    ],
    "ListenerRoleArn": [
        ("sqs:ReceiveMessage", TRIGGERS),
        ("sqs:DeleteMessage", TRIGGERS),
        ("sqs:ChangeMessageVisibility", TRIGGERS),
        ("sqs:GetQueueAttributes", TRIGGERS),
        ("sqs:SendMessage", UPDATES),
    ],
}
MAY_NOT = {
    "SplitterRoleArn": [
        ("s3:PutObject", ARCHIVE),
        ("s3:DeleteObject", ARCHIVE),
        ("s3:AbortMultipartUpload", ARCHIVE),
        ("s3:GetObject", f"{BUCKET}/other/a.zip"),
        ("s3:PutObject", f"{BUCKET}/other/a.zip"),
        ("s3:GetObject", "arn:aws:s3:::biospex-app/export/a.zip"),
        ("s3:PutObject", "arn:aws:s3:::biospex-app/batch/a-part1.zip"),
        ("s3:ListBucket", "arn:aws:s3:::biospex-app"),
        ("sqs:SendMessage", TRIGGERS),
        ("sqs:ReceiveMessage", TRIGGERS),
        ("sqs:DeleteMessage", TRIGGERS),
        ("sqs:SendMessage", f"arn:aws:sqs:{REGION}:{ACCOUNT}:prod-batch-update"),
        ("sqs:ReceiveMessage", UPDATES),
    ],
    "ListenerRoleArn": [
        ("s3:GetObject", ARCHIVE),
        ("s3:PutObject", BATCH),
        ("sqs:SendMessage", TRIGGERS),
        ("sqs:ReceiveMessage", UPDATES),
        ("sqs:ReceiveMessage", f"{TRIGGERS}-dead"),
    ],
}


@pytest.mark.parametrize("role", list(MAY))
def test_each_role_has_its_own_rights_and_no_others(role: str, dev: Stack) -> None:
    granted = grants(dev[role])
    assert all(is_allowed(granted, *one) for one in MAY[role])
    assert not any(is_allowed(granted, *one) for one in MAY_NOT[role])
    assert not any("*" in action for one in granted for action in listed(one["Action"]))


def test_the_splitter_lists_and_mounts_only_its_own_paths(dev: Stack) -> None:
    granted = grants(dev["SplitterRoleArn"])
    [listing] = [one for one in granted if one["Action"] == "s3:ListBucket"]
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["export/*", "batch/*"]}}
    [mounting] = [one for one in granted if "elasticfilesystem:ClientMount" in one["Action"]]
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


@pytest.mark.parametrize(
    "output", ["SplitterRoleArn", "ListenerRoleArn", "WorkerRoleArn", "ExecutionRoleArn"]
)
def test_only_tasks_of_this_account_take_a_role(output: str, dev: Stack) -> None:
    role = client("iam").get_role(RoleName=dev[output].rpartition("/")[2])["Role"]
    [statement] = role["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "ecs-tasks.amazonaws.com"}
    assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}


# -- the proposal for the bucket


def test_s3_accepts_the_lifecycle_rules_and_they_keep_exports(biospex: Biospex) -> None:
    proposal = json.loads(LIFECYCLE.read_text())
    biospex.s3.put_bucket_lifecycle_configuration(
        Bucket=biospex.bucket, LifecycleConfiguration=proposal
    )
    rules = biospex.s3.get_bucket_lifecycle_configuration(Bucket=biospex.bucket)["Rules"]
    assert all(rule["Status"] == "Enabled" for rule in rules)
    assert all(rule["Filter"] == {"Prefix": "batch/"} for rule in rules)
    [expiry] = [rule["Expiration"]["Days"] for rule in rules if "Expiration" in rule]
    assert expiry * 24 > 72  # hours that BIOSPEX's links live
    [uploads] = [one for rule in rules if (one := rule.get("AbortIncompleteMultipartUpload"))]
    assert uploads == {"DaysAfterInitiation": 2}
