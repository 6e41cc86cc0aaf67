"""deploy/stack.yaml in moto's CloudFormation, read back from each service's own API."""

import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import pytest

from devtools.services import REGION
from tests.helpers.biospex import Biospex
from tests.helpers.stacks import (
    ACCOUNT,
    ROOT,
    Stack,
    client,
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
GIVEN_QUEUE = f"arn:aws:sqs:{REGION}:{ACCOUNT}:somebody-elses"


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


def test_an_existing_bucket_and_callback_queue_are_used() -> None:
    with stack("prod", BucketName="another", UpdatesQueueArn=GIVEN_QUEUE) as prod:
        assert prod["BucketName"] == "another"
        assert prod["UpdatesQueueArn"] == GIVEN_QUEUE
        assert prod["UpdatesQueueUrl"] == (
            f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/somebody-elses"
        )
        assert "UpdatesQueue" not in prod.resources()
        granted = grants(prod["SplitterRoleArn"])
        assert is_allowed(granted, "sqs:SendMessage", GIVEN_QUEUE)
        assert is_allowed(granted, "s3:GetObject", "arn:aws:s3:::another/export/a.zip")


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


def test_an_existing_trigger_queue_is_used() -> None:
    queue = f"arn:aws:sqs:{REGION}:{ACCOUNT}:production"
    with stack("prod", TriggerQueueArn=queue) as prod:
        assert "TriggerQueue" not in prod.resources()
        assert prod["TriggerQueueArn"] == queue
        assert prod["TriggerQueueUrl"] == f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/production"
        assert is_allowed(grants(prod["ListenerRoleArn"]), "sqs:DeleteMessage", queue)


def test_tasks_and_worker_may_use_a_given_key_and_read_a_given_secret() -> None:
    key = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1"
    secret = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:prefect-1"
    with stack("prod", BucketKeyArn=key, PrefectApiAuthStringSecretArn=secret) as prod:
        splitter = grants(prod["SplitterRoleArn"])
        assert is_allowed(splitter, "kms:Decrypt", key)
        assert is_allowed(splitter, "kms:GenerateDataKey", key)
        execution = grants(prod["ExecutionRoleArn"])
        assert is_allowed(execution, "secretsmanager:GetSecretValue", secret)


def test_a_removed_stack_leaves_its_messages_files_and_log() -> None:
    with stack("loc") as loc:
        client("sqs").send_message(QueueUrl=loc["TriggerQueueUrl"], MessageBody="{}")
        url, files, log = loc["TriggerQueueUrl"], loc["FileSystemId"], loc["LogGroupName"]
        client("cloudformation").delete_stack(StackName=loc.name)
        [message] = client("sqs").receive_message(QueueUrl=url)["Messages"]
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


def test_roles_may_use_the_keys_of_queues_and_secret() -> None:
    trigger, updates, secret = (f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{one}" for one in "123")
    keys: dict[str, Any] = {
        "TriggerQueueKeyArn": trigger,
        "UpdatesQueueKeyArn": updates,
        "SecretKeyArn": secret,
    }
    with stack("prod", **keys) as prod:
        listener, splitter, execution = (
            grants(prod[f"{role}RoleArn"]) for role in ("Listener", "Splitter", "Execution")
        )
    assert is_allowed(listener, "kms:Decrypt", trigger)
    for granted in (listener, splitter):  # both answer
        assert is_allowed(granted, "kms:Decrypt", updates)
        assert is_allowed(granted, "kms:GenerateDataKey", updates)
    assert is_allowed(execution, "kms:Decrypt", secret)
    assert not is_allowed(splitter, "kms:Decrypt", trigger)
    assert not is_allowed(splitter, "kms:Decrypt", secret)


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


def test_an_update_keeps_the_messages_of_the_queue() -> None:
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
