"""Checks every answer of deploy.sh before it creates anything.

    python -m deploy.answers ANSWERS.env --environment prod --stack biospex-prod [--open-api]

ANSWERS.env holds one NAME=VALUE a line. Each wrong answer gives one line on standard error, and the
exit status is 1 if one of them begins with "stop". ``Answers`` holds types and ranges and needs no
account. ``references`` looks up in the account the things that answers name. The checks of
deploy/preflight.py come last.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from deploy import preflight
from deploy.preflight import Finding, Plan, note, stop
from splitter.settings import Allowed, Docs, Settings

WORKER_VCPU = 0.75
"""Of worker and listener together."""

# -- types and ranges


def _matches(pattern: str, sentence: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(sentence)
        return value

    return AfterValidator(check)


def _optional(pattern: str, sentence: str) -> AfterValidator:
    return _matches(f"(?:{pattern})?", sentence)


def _region(value: str) -> str:
    known = preflight.regions()
    if value not in known:
        close = difflib.get_close_matches(value, sorted(known), 1)
        meant = f"; the nearest is {close[0]}" if close else ""
        raise ValueError(f"AWS has no such region{meant}")
    return value


def _subnets(value: str) -> str:
    ids = value.split(",")
    if not all(re.fullmatch(r"subnet-[0-9a-f]+", one) for one in ids):
        raise ValueError("give ids like subnet-0a1b, separated by commas without blanks")
    if len(ids) > 3:
        raise ValueError(f"at most three subnets can have EFS, and these are {len(ids)}")
    if len(set(ids)) < len(ids):
        raise ValueError("a subnet is named twice")
    return value


def _api_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise ValueError(
            "give the address of the Prefect API, like https://HOST/api; "
            "docs/where-prefect-runs.md lists the ways to have one"
        )
    if parts.username or parts.password:
        raise ValueError("leave the password out of the address; give the secret's ARN instead")
    if parts.scheme == "http" and not preflight.is_this_machine(host):
        raise ValueError("http sends the key unencrypted; use https")
    if not parts.path.rstrip("/").endswith("/api") and "/workspaces/" not in parts.path:
        raise ValueError("the address of an API ends in /api, or names a workspace of the Cloud")
    return value


def _integer(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[0-9]+", value):
        raise ValueError("give a whole number")
    return value


QUEUE = r"arn:[^:]+:sqs:[^:]+:[0-9]{12}:[A-Za-z0-9_-]+"
KEY = r"arn:[^:]+:kms:[^:]+:[0-9]{12}:key/[A-Za-z0-9-]+"
TOPIC = r"arn:[^:]+:sns:[^:]+:[0-9]{12}:[A-Za-z0-9_-]+"
SECRET = r"arn:[^:]+:secretsmanager:[^:]+:[0-9]{12}:secret:.+"  # noqa: S105, a pattern

# https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_PutRetentionPolicy.html
RETENTIONS = (1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 3653)

# https://docs.aws.amazon.com/AmazonECS/latest/developerguide/fargate-tasks-services.html
MEMORY_OF_CPU: dict[int, Sequence[int]] = {
    256: (512, 1024, 2048),
    512: range(1024, 4096 + 1, 1024),
    1024: range(2048, 8192 + 1, 1024),
    2048: range(4096, 16384 + 1, 1024),
    4096: range(8192, 30720 + 1, 1024),
    8192: range(16384, 61440 + 1, 4096),
    16384: range(32768, 122880 + 1, 8192),
}


def _one_of(allowed: Sequence[int], sentence: str) -> AfterValidator:
    def check(value: int) -> int:
        if value not in allowed:
            raise ValueError(f"{sentence}: {', '.join(map(str, allowed))}")
        return value

    return AfterValidator(check)


QueueArn = Annotated[
    str, _optional(QUEUE, "give the ARN of a standard queue, arn:aws:sqs:REGION:ACCOUNT:NAME")
]
KeyArn = Annotated[
    str, _optional(KEY, "give the ARN of the key itself, arn:aws:kms:REGION:ACCOUNT:key/ID")
]
SecretArn = Annotated[
    str,
    _optional(SECRET, "give a secret's ARN, arn:aws:secretsmanager:REGION:ACCOUNT:secret:…"),
]


class Answers(BaseModel):
    """The answers of one environment; deploy.sh keeps them as deploy/ENVIRONMENT.env."""

    model_config = ConfigDict(extra="ignore", alias_generator=str.upper, populate_by_name=True)

    shape: Literal["pools", "single"] = "pools"
    aws_region: Annotated[str, AfterValidator(_region)]
    bucket: Annotated[
        str,
        _matches(
            r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
            "a bucket's name has 3 to 63 small letters, digits, dots and hyphens",
        ),
    ]
    bucket_key_arn: KeyArn = ""
    vpc_id: Annotated[str, _matches(r"vpc-[0-9a-f]+", "give the id of a VPC, like vpc-0a1b")]
    subnet_ids: Annotated[str, AfterValidator(_subnets)]
    assign_public_ip: Literal["ENABLED", "DISABLED"] = "ENABLED"
    trigger_queue_arn: QueueArn = ""
    updates_queue_arn: QueueArn = ""
    alarm_topic_arn: Annotated[
        str, _optional(TOPIC, "give the ARN of a standard topic, arn:aws:sns:REGION:ACCOUNT:NAME")
    ] = ""
    log_retention_days: Annotated[
        int, BeforeValidator(_integer), _one_of(RETENTIONS, "CloudWatch keeps logs for one of")
    ] = 90
    prefect_api_url: Annotated[str, AfterValidator(_api_url)]
    prefect_api_key_secret_arn: SecretArn = ""
    prefect_api_auth_string_secret_arn: SecretArn = ""
    notification_block: Annotated[
        str,
        _optional(
            r"[a-z0-9-]+/[a-z0-9-]+",
            "give type and name of a notification block, like slack-webhook/operators",
        ),
    ] = ""
    cpu: Annotated[
        int, BeforeValidator(_integer), _one_of(tuple(MEMORY_OF_CPU), "Fargate has CPU units of")
    ] = 2048
    memory: Annotated[int, BeforeValidator(_integer), Field(ge=512, le=122880)] = 4096
    ephemeral_storage: Annotated[int, BeforeValidator(_integer), Field(ge=21, le=200)] = 100
    capacity: Literal["FARGATE", "FARGATE_SPOT"] = "FARGATE"
    flow_settings: str = ""
    lifecycle_rules: Annotated[str, _matches("|y|yes|n|no", "answer yes or no")] = ""


def parse(raw: Mapping[str, str]) -> tuple[Answers, list[Finding]]:
    """The valid answers, and a finding for each invalid one, which is None among the answers."""
    try:
        return Answers.model_validate(raw), []
    except ValidationError as error:
        wrong = {str(problem["loc"][0]): problem for problem in error.errors()}
    findings = [_wrong(name, raw.get(name, ""), problem) for name, problem in wrong.items()]
    usable: dict[str, Any] = {}
    for name, field in Answers.model_fields.items():
        alias = name.upper()
        if alias in wrong:
            usable[name] = None
        elif alias in raw:
            convert = int if field.annotation is int else str
            usable[name] = convert(raw[alias])
    return Answers.model_construct(**usable), findings


def _wrong(name: str, value: str, problem: Any) -> Finding:
    sentence = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"]
    return stop(f"{name}={value!r}: {sentence}.")


def read(text: str) -> dict[str, str]:
    """The lines NAME=VALUE of a file of answers."""
    lines = [line.partition("=") for line in text.splitlines() if "=" in line]
    return {name: value for name, _, value in lines}


# -- combinations of answers


def memory_of_cpu(answers: Answers) -> Iterator[Finding]:
    if answers.cpu is None or answers.memory is None:
        return
    allowed = MEMORY_OF_CPU[answers.cpu]
    if answers.memory not in allowed:
        yield stop(
            f"MEMORY={answers.memory}: Fargate gives {answers.cpu} CPU units {allowed[0]} to "
            f"{allowed[-1]} MiB, in the steps that its table lists."
        )


def flow_settings(answers: Answers) -> Iterator[Finding]:
    """Checks each setting's name and value as the run itself reads them."""
    fields = {
        name.upper(): (model, name)
        for model in (Settings, Allowed, Docs)
        for name in model.model_fields
    }
    for one in (answers.flow_settings or "").split():
        name, equals, value = one.partition("=")
        if not equals:
            yield stop(f"FLOW_SETTINGS: {one!r} is not NAME=VALUE.")
        elif name not in fields and name != "TMPDIR" and not name.startswith("PREFECT_"):
            close = difflib.get_close_matches(name, fields, 1)
            meant = f"; do you mean {close[0]}?" if close else ""
            yield stop(f"FLOW_SETTINGS: there is no setting {name!r}{meant}.")
        elif name in fields:
            model, field = fields[name]
            try:
                model.model_validate({field: value})
            except ValidationError as error:  # of this field, or of another in this shell
                for problem in error.errors():
                    if problem["loc"][0] == field:
                        yield stop(f"FLOW_SETTINGS: {name}={value!r}: {problem['msg']}.")


def secrets(answers: Answers, *, open_api: bool) -> Iterator[Finding]:
    """Worker and tasks sign in with one secret: a key in the Cloud, an auth string elsewhere."""
    key, auth = answers.prefect_api_key_secret_arn, answers.prefect_api_auth_string_secret_arn
    if key is None or auth is None:  # reported already
        return
    host = urlsplit(answers.prefect_api_url or "").hostname or ""
    is_cloud = host == "prefect.cloud" or host.endswith(".prefect.cloud")
    if key and auth:
        yield stop(
            "PREFECT_API_KEY_SECRET_ARN and PREFECT_API_AUTH_STRING_SECRET_ARN are both given; "
            "leave one of the two empty."
        )
    elif is_cloud and auth:
        yield stop(
            "PREFECT_API_AUTH_STRING_SECRET_ARN: Prefect Cloud takes a key; answer "
            "PREFECT_API_KEY_SECRET_ARN instead."
        )
    elif not key and not auth and not open_api:
        yield stop(
            "PREFECT_API_KEY_SECRET_ARN and PREFECT_API_AUTH_STRING_SECRET_ARN are empty: tasks "
            "sign in with a secret of Secrets Manager. Create it as docs/where-prefect-runs.md "
            "shows (--open-api: the API has no authentication)."
        )


def topic_of_production(answers: Answers, environment: str) -> Iterator[Finding]:
    if environment == "prod" and answers.alarm_topic_arn == "":
        yield stop(
            "ALARM_TOPIC_ARN is empty: prod needs a topic that somebody reads. Create it: aws sns "
            "create-topic --name biospex-operators, then aws sns subscribe --topic-arn ARN "
            "--protocol email --notification-endpoint YOU@EXAMPLE.ORG."
        )


STACK_QUEUES = {
    "TriggerQueue": "batch-trigger",
    "DeadLetterQueue": "batch-trigger-dead",
    "UpdatesQueue": "batch-update",
    "UpdatesDeadLetterQueue": "batch-update-dead",
    "TaskEventsQueue": "biospex-task-events",
    "TaskEventsDeadLetterQueue": "biospex-task-events-dead",
}
"""The queues' names in stack.yaml, and in SQS without the environment."""


def name_of(arn: str) -> str:
    return arn.rpartition(":")[2]


def own_queues(answers: Answers, environment: str, made: Mapping[str, str]) -> Iterator[Finding]:
    """Refuses an answer that names a queue of the stack, as it would remove that queue from it.

    Args:
        made: the stack's resources, physical ids by name; empty if there is no stack.
    """
    trigger, updates = answers.trigger_queue_arn or "", answers.updates_queue_arn or ""
    if trigger and trigger == updates:
        yield stop(
            "UPDATES_QUEUE_ARN is the trigger queue: callbacks would be read as triggers. Give "
            "another queue."
        )
        return
    fixed = ("DeadLetterQueue", "TaskEventsQueue", "TaskEventsDeadLetterQueue")
    for answer, arn in (("TRIGGER_QUEUE_ARN", trigger), ("UPDATES_QUEUE_ARN", updates)):
        if not arn:
            continue
        for resource, suffix in STACK_QUEUES.items():
            is_named = name_of(arn) == f"{environment}-{suffix}"
            if is_named and (resource in made or resource in fixed):
                yield stop(
                    f"{answer}={arn!r}: that is the stack's own queue ({resource}), which this "
                    "answer would remove from the stack. Leave the answer empty to keep the queue "
                    "(type - at the question)."
                )


def resources_of(stack: str) -> dict[str, str]:
    """The physical id of each resource of a stack by its name; empty if there is no stack."""
    try:
        pages = (
            boto3.client("cloudformation")
            .get_paginator("list_stack_resources")
            .paginate(StackName=stack)
        )
        return {
            one["LogicalResourceId"]: one.get("PhysicalResourceId", "")
            for page in pages
            for one in page["StackResourceSummaries"]
            if one["ResourceStatus"] not in ("DELETE_COMPLETE", "DELETE_SKIPPED")
        }
    except ClientError as error:
        if "does not exist" in str(error):
            return {}
        raise


def left_behind(answers: Answers, environment: str, made: Mapping[str, str]) -> Iterator[Finding]:
    """Finds queues of an earlier stack, as a new stack cannot create others of their names."""
    given = {"TriggerQueue": answers.trigger_queue_arn, "UpdatesQueue": answers.updates_queue_arn}
    given["UpdatesDeadLetterQueue"] = given["UpdatesQueue"]
    for resource, suffix in STACK_QUEUES.items():
        name = f"{environment}-{suffix}"
        if resource in made or given.get(resource) or not (arn := preflight.queue_arn(name)):
            continue
        if resource in ("TriggerQueue", "UpdatesQueue"):
            answer = "TRIGGER_QUEUE_ARN" if resource == "TriggerQueue" else "UPDATES_QUEUE_ARN"
            yield stop(
                f"{answer} is empty, and the stack cannot create the queue {name}, which exists: "
                f"answer with {arn} to keep it."
            )
        else:
            yield stop(
                f"The queue {name} exists outside the stack, which cannot create another of that "
                "name. Make sure that it is empty, then: aws sqs delete-queue --queue-url "
                f"{preflight.queue_url(name)}"
            )
    group = f"/ecs/{environment}-biospex-batch-creator"
    logs: Any = boto3.client("logs")
    found = logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"]
    if "LogGroup" not in made and any(one["logGroupName"] == group for one in found):
        yield stop(
            f"The log group {group} exists outside the stack, which cannot create another of that "
            f"name: aws logs delete-log-group --log-group-name {group}"
        )


# -- the things in the account that answers name


def vpc(answers: Answers) -> Iterator[Finding]:
    if not answers.vpc_id:
        return
    ec2: Any = boto3.client("ec2")
    wanted = [{"Name": "vpc-id", "Values": [answers.vpc_id]}]
    if not ec2.describe_vpcs(Filters=wanted)["Vpcs"]:
        there = ", ".join(sorted(one["VpcId"] for one in ec2.describe_vpcs()["Vpcs"])) or "none"
        yield stop(f"VPC_ID={answers.vpc_id!r}: there is no such VPC here; there are: {there}.")
        return
    hostnames = ec2.describe_vpc_attribute(VpcId=answers.vpc_id, Attribute="enableDnsHostnames")
    if not hostnames["EnableDnsHostnames"]["Value"]:
        yield stop(
            f"VPC_ID={answers.vpc_id!r}: its DNS hostnames are off, and EFS needs them: aws ec2 "
            f"modify-vpc-attribute --vpc-id {answers.vpc_id} --enable-dns-hostnames"
        )


def subnets(answers: Answers) -> Iterator[Finding]:
    """The subnets exist, in the VPC, in different zones, and reach the services that tasks call."""
    if not answers.subnet_ids:
        return
    ids, begin = answers.subnet_ids.split(","), f"SUBNET_IDS={answers.subnet_ids!r}"
    ec2: Any = boto3.client("ec2")
    found = ec2.describe_subnets(Filters=[{"Name": "subnet-id", "Values": ids}])["Subnets"]
    missing = sorted(set(ids) - {one["SubnetId"] for one in found})
    if missing:
        yield stop(f"{begin}: there is no {', '.join(missing)} in this account and region.")
        return
    elsewhere = [one["SubnetId"] for one in found if one["VpcId"] != answers.vpc_id]
    if answers.vpc_id and elsewhere:
        yield stop(f"{begin}: {', '.join(elsewhere)} is not in {answers.vpc_id}.")
        return
    if len({one["AvailabilityZone"] for one in found}) < len(found):
        yield stop(f"{begin}: two are in one availability zone, where EFS has one mount target.")
    for one in found:
        yield from way_out(answers, one["SubnetId"], one["VpcId"])


def mount_targets(answers: Answers, made: str) -> Iterator[Finding]:
    """Refuses a subnet at another place: its new mount target would come before the old one goes.

    Args:
        made: the stack's own subnets, separated by commas; empty if there is no stack.
    """
    if not made or not answers.subnet_ids:
        return
    old, new = made.split(","), answers.subnet_ids.split(",")
    moved = [one for one in new if one in old and old.index(one) != new.index(one)]
    if moved:
        yield stop(
            f"SUBNET_IDS={answers.subnet_ids!r}: {', '.join(moved)} would change its place in "
            f"{made}, and EFS refuses a second mount target there. Keep the order, add at the end, "
            "and replace a subnet by another in its place."
        )


def way_out(answers: Answers, subnet: str, vpc_id: str) -> Iterator[Finding]:
    """Whether a task in the subnet reaches Prefect and the services that it calls.

    These are notes, as a network can have a route that its route tables do not show.
    """
    table = route_table(subnet, vpc_id)
    target = default_route(table)
    public = answers.assign_public_ip
    begin = f"SUBNET_IDS: {subnet}"
    if public == "ENABLED" and not target.startswith("igw-"):
        yield note(
            f"{begin} has no route to an internet gateway, which a public address needs: choose "
            "public subnets, or answer ASSIGN_PUBLIC_IP with DISABLED."
        )
    elif public == "DISABLED" and target.startswith("igw-"):
        yield note(
            f"{begin} leads to an internet gateway, which needs public addresses: answer "
            "ASSIGN_PUBLIC_IP with ENABLED, or choose subnets with a NAT."
        )
    elif public == "DISABLED" and not target:
        needed = ENDPOINTS[answers.shape or "pools"]
        if missing := missing_endpoints(needed, vpc_id, str(table.get("RouteTableId"))):
            yield note(
                f"{begin} has no route out, and {vpc_id} has no endpoints for "
                f"{', '.join(missing)}: add a NAT, or these endpoints. Prefect's API has to be "
                "inside the VPC then."
            )


def route_table(subnet: str, vpc_id: str) -> Any:
    """The route table of a subnet, its own or its VPC's; empty if there is none."""
    ec2: Any = boto3.client("ec2")
    own = [{"Name": "association.subnet-id", "Values": [subnet]}]
    main = [
        {"Name": "vpc-id", "Values": [vpc_id]},
        {"Name": "association.main", "Values": ["true"]},
    ]
    tables = (
        ec2.describe_route_tables(Filters=own)["RouteTables"]
        or ec2.describe_route_tables(Filters=main)["RouteTables"]
    )
    return tables[0] if tables else {}


def default_route(table: Any) -> str:
    """The target of 0.0.0.0/0; empty if there is none."""
    for route in table.get("Routes", ()):
        if route.get("DestinationCidrBlock") == "0.0.0.0/0" and route.get("State") != "blackhole":
            targets = [value for name, value in route.items() if name.endswith("Id") and value]
            return str(targets[0]) if targets else ""
    return ""


CALLED = {"pools": ("ec2", "ecs", "s3", "sqs"), "single": ("s3", "sqs")}
"""The services that the processes call; the tests of their roles compare this with each call."""

CALLED_BY_ECS = ("ecr.api", "ecr.dkr", "logs", "secretsmanager")
"""The services that ECS calls from the task's network to start it: image, log and secret.

https://docs.aws.amazon.com/AmazonECS/latest/developerguide/vpc-endpoints.html
"""

ENDPOINTS = {shape: (*CALLED_BY_ECS, *called) for shape, called in CALLED.items()}


def missing_endpoints(needed: Sequence[str], vpc_id: str, table_id: str) -> list[str]:
    """The services without an endpoint in a VPC; a gateway counts if the route table names it."""
    found = boto3.client("ec2").describe_vpc_endpoints(
        Filters=[{"Name": "vpc-id", "Values": [vpc_id]}]
    )["VpcEndpoints"]
    reached = {
        one["ServiceName"]
        for one in found
        if one["State"].lower() == "available"
        and (one["VpcEndpointType"] != "Gateway" or table_id in one["RouteTableIds"])
    }
    return [name for name in needed if not any(one.endswith(f".{name}") for one in reached)]


def region_of(arn: str) -> str:
    return arn.split(":")[3]


def queues(answers: Answers) -> Iterator[Finding]:
    """Each kept queue exists in this region, and the callback queue has a redrive policy."""
    for answer, arn in (
        ("TRIGGER_QUEUE_ARN", answers.trigger_queue_arn),
        ("UPDATES_QUEUE_ARN", answers.updates_queue_arn),
    ):
        if not arn:
            continue
        is_here = region_of(arn) == answers.aws_region
        if answer == "UPDATES_QUEUE_ARN" and not is_here:
            yield note(f"{answer}={arn!r}: it is in another region and was not checked.")
        elif not is_here or preflight.queue_arn(name_of(arn)) != arn:
            yield stop(f"{answer}={arn!r}: there is no such queue in this account and region.")
        elif answer == "UPDATES_QUEUE_ARN":
            yield from callback_queue(arn)


def callback_queue(arn: str) -> Iterator[Finding]:
    if "RedrivePolicy" not in preflight.queue_attributes(arn):
        yield note(
            f"UPDATES_QUEUE_ARN={arn!r}: it has no redrive policy. BIOSPEX never deletes a "
            "failure, so each comes back for days and alerts its administrator each time; "
            "docs/deploying.md has the two commands."
        )


def topic(answers: Answers, environment: str) -> Iterator[Finding]:
    """The topic exists, has a confirmed subscription, and CloudWatch may use its key."""
    arn = answers.alarm_topic_arn
    if not arn:
        return
    begin = f"ALARM_TOPIC_ARN={arn!r}"
    if region_of(arn) != answers.aws_region:
        yield stop(f"{begin}: an alarm can only use a topic of its own region.")
        return
    sns: Any = boto3.client("sns")
    try:
        key = sns.get_topic_attributes(TopicArn=arn)["Attributes"].get("KmsMasterKeyId", "")
    except ClientError as error:
        if preflight.code_of(error) not in ("NotFound", "NotFoundException"):
            raise
        yield stop(f"{begin}: there is no such topic in this account.")
        return
    if key.endswith("alias/aws/sns"):
        yield stop(
            f"{begin}: it encrypts with alias/aws/sns, which CloudWatch may not use, so no alarm "
            "would arrive. Give it a key of your own, or none."
        )
    elif key and not allows_service(key, "cloudwatch.amazonaws.com"):
        yield stop(
            f"{begin}: the policy of its KMS key {key} does not let cloudwatch.amazonaws.com use "
            "kms:Decrypt and kms:GenerateDataKey*, so no alarm would arrive."
        )
    pages = sns.get_paginator("list_subscriptions_by_topic").paginate(TopicArn=arn)
    subscriptions = [one["SubscriptionArn"] for page in pages for one in page["Subscriptions"]]
    if not any(one.startswith("arn:") for one in subscriptions):
        finding = stop if environment == "prod" else note
        state = "its subscription is not confirmed" if subscriptions else "nobody has subscribed"
        yield finding(f"{begin}: {state}, so no alarm reaches anybody.")


def allows_service(key: str, service: str) -> bool:
    kms: Any = boto3.client("kms")
    arn = kms.describe_key(KeyId=key)["KeyMetadata"]["Arn"]
    return service in kms.get_key_policy(KeyId=arn, PolicyName="default")["Policy"]


def secret_is_there(answers: Answers) -> Iterator[Finding]:
    manager: Any = boto3.client("secretsmanager")
    for answer, arn in (
        ("PREFECT_API_KEY_SECRET_ARN", answers.prefect_api_key_secret_arn),
        ("PREFECT_API_AUTH_STRING_SECRET_ARN", answers.prefect_api_auth_string_secret_arn),
    ):
        if not arn:
            continue
        try:
            found = manager.describe_secret(SecretId=arn)
        except ClientError as error:
            if preflight.code_of(error) not in ("ResourceNotFoundException", "ValidationException"):
                raise
            yield stop(f"{answer}={arn!r}: there is no such secret.")
        else:
            if found["ARN"] != arn:
                yield stop(f"{answer}={arn!r}: the whole ARN is {found['ARN']}.")


def bucket_key_is_there(answers: Answers) -> Iterator[Finding]:
    arn = answers.bucket_key_arn
    if not arn:
        return
    try:
        found = boto3.client("kms").describe_key(KeyId=arn)["KeyMetadata"]
    except ClientError as error:
        if preflight.code_of(error) != "NotFoundException":
            raise
        yield stop(f"BUCKET_KEY_ARN={arn!r}: there is no such key.")
    else:
        if found["KeyState"] != "Enabled":
            yield stop(f"BUCKET_KEY_ARN={arn!r}: the key is {found['KeyState']}.")


def key_policies(answers: Answers) -> Iterator[Finding]:
    """Finds keys whose policy does not defer to IAM, and so has to name the roles itself."""
    is_single = answers.shape == "single"
    for arn, roles in (
        (answers.trigger_queue_arn, "SingleRoleArn" if is_single else "ListenerRoleArn"),
        (
            answers.updates_queue_arn,
            "SingleRoleArn" if is_single else "ListenerRoleArn and SplitterRoleArn",
        ),
        (answers.prefect_api_key_secret_arn, "ExecutionRoleArn"),
        (answers.prefect_api_auth_string_secret_arn, "ExecutionRoleArn"),
    ):
        if not arn:
            continue
        try:
            key = preflight.key_of(arn)
        except ClientError:  # missing, as another check reports
            continue
        if key and not preflight.leaves_access_to_iam(key):
            yield note(
                f"{arn} encrypts with the KMS key {key}, whose policy does not leave access to "
                f"IAM: add the stack's {roles} to it, with kms:Decrypt and kms:GenerateDataKey."
            )


# -- the command


def problems(raw: Mapping[str, str], environment: str, *, open_api: bool) -> Iterator[Finding]:
    """A finding for each answer that is wrong by itself or beside another; calls no service."""
    answers, wrong = parse(raw)
    yield from wrong
    yield from memory_of_cpu(answers)
    yield from flow_settings(answers)
    yield from secrets(answers, open_api=open_api)
    yield from topic_of_production(answers, environment)


def references(answers: Answers, environment: str, stack: str) -> Iterator[Finding]:
    """A finding for each answer that names a missing or unsuitable thing."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "VPC_ID": lambda: vpc(answers),
        "SUBNET_IDS": lambda: subnets(answers),
        "the stack's queues": lambda: _stack_queues(answers, environment, stack),
        "the queues": lambda: queues(answers),
        "ALARM_TOPIC_ARN": lambda: topic(answers, environment),
        "the secret": lambda: secret_is_there(answers),
        "BUCKET_KEY_ARN": lambda: bucket_key_is_there(answers),
        "the KMS keys": lambda: key_policies(answers),
    }
    for subject, check in checks.items():
        try:
            yield from list(check())
        except ClientError as error:
            yield note(f"{subject} could not be checked: {error}")


def _stack_queues(answers: Answers, environment: str, stack: str) -> Iterator[Finding]:
    made = resources_of(stack)
    yield from own_queues(answers, environment, made)
    yield from left_behind(answers, environment, made)


def plan_of(answers: Answers) -> Plan:
    """The input of preflight's checks; a wrong answer is left out."""
    in_flight = re.search(r"(?<!\S)MAX_IN_FLIGHT=(\d+)(?!\S)", answers.flow_settings or "")
    vcpu = (answers.cpu or 0) / 1024
    if answers.shape != "single":
        vcpu = vcpu * int(in_flight[1] if in_flight else 4) + WORKER_VCPU
    return Plan(
        bucket=answers.bucket or "",
        vpc_id=answers.vpc_id or "",
        bucket_key_arn=answers.bucket_key_arn or "",
        trigger_queue_arn=answers.trigger_queue_arn or "",
        vcpu=vcpu,
        capacity=answers.capacity or "FARGATE",
    )


def findings(
    raw: Mapping[str, str],
    environment: str,
    stack: str,
    *,
    trigger: str,
    subnets_made: str,
    open_api: bool,
) -> Iterator[Finding]:
    """All findings about the answers and the account.

    Args:
        trigger: ARN of the stack's own trigger queue, which the old Lambda may read too.
        subnets_made: the stack's own subnets.
    """
    yield from problems(raw, environment, open_api=open_api)
    answers, _ = parse(raw)
    if answers.aws_region is None:
        return  # no account can be checked
    yield from mount_targets(answers, subnets_made)
    yield from references(answers, environment, stack)
    plan = plan_of(answers)
    yield from preflight.check_aws(plan)
    if trigger and not plan.trigger_queue_arn:
        yield from preflight.old_lambda_of(trigger)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings; the exit status is 1 if one of them stops the deployment."""
    parser = argparse.ArgumentParser(prog="python -m deploy.answers")
    parser.add_argument("answers", type=Path, help="NAME=VALUE, one a line")
    parser.add_argument("--environment", required=True)
    parser.add_argument("--stack", required=True)
    parser.add_argument("--trigger-queue-arn", default="", help="the stack's own, if there is one")
    parser.add_argument("--subnets-of-the-stack", default="")
    parser.add_argument("--open-api", action="store_true")
    options = parser.parse_args(arguments)
    try:
        return preflight.report(
            findings(
                read(options.answers.read_text()),
                options.environment,
                options.stack,
                trigger=options.trigger_queue_arn,
                subnets_made=options.subnets_of_the_stack,
                open_api=options.open_api,
            )
        )
    except (ClientError, BotoCoreError) as error:
        return preflight.report([stop(f"AWS answers with an error: {error}")])


if __name__ == "__main__":
    sys.exit(main())
