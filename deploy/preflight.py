"""Checks of the answers and of the account before anything is created; they change nothing.

A new check is one function with the decorator ``check``. deploy/server.py has those of Prefect.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal
from urllib.parse import urlsplit

from botocore.exceptions import ClientError
from pydantic import ValidationError

from deploy import account
from deploy.account import client, filters, found, name_of
from deploy.answers import MEMORY_OF_CPU, Answers
from splitter.settings import Allowed, Docs, Settings


class DeploymentError(Exception):
    """The deployment cannot go on; the text says why."""


@dataclass(frozen=True)
class Finding:
    """A problem that the operator has to know about.

    Attributes:
        level: ``stop`` if the deployment would fail or do harm, else ``note``.
        sentence: the problem, its effect and the remedy.
    """

    level: Literal["stop", "note"]
    sentence: str


stop = partial(Finding, "stop")
note = partial(Finding, "note")


def report(findings: Iterable[Finding]) -> bool:
    """Print the findings; the result tells whether one of them stops the deployment."""
    stops = False
    for finding in findings:
        print(f"{finding.level}: {finding.sentence}", file=sys.stderr)
        stops |= finding.level == "stop"
    return stops


@dataclass(frozen=True)
class Case:
    """The input of a check.

    Attributes:
        open_api: whether to accept an API without authentication, or on this machine.
    """

    answers: Answers
    environment: str
    stack: account.Stack
    open_api: bool = False


Check = Callable[[Case], Iterator[Finding]]
CHECKS: list[tuple[Check, tuple[str, ...]]] = []


def check(*needs: str) -> Callable[[Check], Check]:
    """Declares a check, which runs unless an answer that it needs is wrong or empty."""

    def declare(function: Check) -> Check:
        CHECKS.append((function, needs))
        return function

    return declare


def findings(case: Case) -> Iterator[Finding]:
    """All findings; a check that AWS refuses is a note."""
    for function, needs in CHECKS:
        if all(getattr(case.answers, name) for name in needs):
            try:
                yield from list(function(case))
            except ClientError as error:
                if account.code_of(error) != "NoSuchBucket":  # bucket_is_there reports it
                    yield note(f"{function.__name__} could not be checked: {error}")


# -- answers beside each other


@check("cpu", "memory")
def memory_of_cpu(case: Case) -> Iterator[Finding]:
    allowed = MEMORY_OF_CPU[case.answers.cpu]
    if case.answers.memory not in allowed:
        yield stop(
            f"MEMORY={case.answers.memory}: Fargate gives {case.answers.cpu} CPU units "
            f"{allowed[0]} to {allowed[-1]} MiB, in the steps that its table lists."
        )


@check("flow_settings")
def flow_settings(case: Case) -> Iterator[Finding]:
    """Checks each setting's name and value as the run itself reads them."""
    models = {n.upper(): model for model in (Settings, Allowed, Docs) for n in model.model_fields}
    for one in case.answers.flow_settings.split():
        name, equals, value = one.partition("=")
        if not equals:
            yield stop(f"FLOW_SETTINGS: {one!r} is not NAME=VALUE.")
        elif name in models:
            try:
                models[name].model_validate({name.lower(): value})
            except ValidationError as error:  # of this field, or of another in this shell
                for problem in error.errors():
                    if problem["loc"][0] == name.lower():
                        yield stop(f"FLOW_SETTINGS: {name}={value!r}: {problem['msg']}.")
        elif name != "TMPDIR" and not name.startswith("PREFECT_"):
            yield stop(
                f"FLOW_SETTINGS: there is no setting {name!r}; docs/configuration.md lists them."
            )


@check("prefect_api_url")
def secrets(case: Case) -> Iterator[Finding]:
    """Worker and tasks sign in with one secret: a key in the Cloud, an auth string elsewhere."""
    key = case.answers.prefect_api_key_secret_arn
    auth = case.answers.prefect_api_auth_string_secret_arn
    names = "PREFECT_API_KEY_SECRET_ARN and PREFECT_API_AUTH_STRING_SECRET_ARN are"
    if key and auth:
        yield stop(f"{names} both given; leave one of the two empty.")
    elif auth and str(urlsplit(case.answers.prefect_api_url).hostname).endswith("prefect.cloud"):
        yield stop(
            "PREFECT_API_AUTH_STRING_SECRET_ARN: Prefect Cloud takes a key; answer "
            "PREFECT_API_KEY_SECRET_ARN instead."
        )
    elif key == auth == "" and not case.open_api:
        yield stop(
            f"{names} empty: tasks sign in with a secret of Secrets Manager. Create it as "
            "docs/where-prefect-runs.md shows (--open-api: the API has no authentication)."
        )


@check()
def topic_of_production(case: Case) -> Iterator[Finding]:
    if case.environment == "prod" and case.answers.alarm_topic_arn == "":
        yield stop(
            "ALARM_TOPIC_ARN is empty: prod needs a topic that somebody reads. Create it: aws sns "
            "create-topic --name biospex-operators, then aws sns subscribe --topic-arn ARN "
            "--protocol email --notification-endpoint YOU@EXAMPLE.ORG."
        )


# -- queues and the log group

STACK_QUEUES = {
    "TriggerQueue": "batch-trigger",
    "DeadLetterQueue": "batch-trigger-dead",
    "UpdatesQueue": "batch-update",
    "UpdatesDeadLetterQueue": "batch-update-dead",
    "TaskEventsQueue": "biospex-task-events",
    "TaskEventsDeadLetterQueue": "biospex-task-events-dead",
}
"""The queues' names in stack.yaml, and in SQS without the environment."""

ANSWER_OF_QUEUE = {"TriggerQueue": "TRIGGER_QUEUE_ARN", "UpdatesQueue": "UPDATES_QUEUE_ARN"}


def given_queues(answers: Answers) -> dict[str, str]:
    """The ARNs of the existing queues that replace queues of the stack."""
    given = {"TriggerQueue": answers.trigger_queue_arn, "UpdatesQueue": answers.updates_queue_arn}
    return {resource: arn for resource, arn in given.items() if arn}


@check()
def queues(case: Case) -> Iterator[Finding]:
    """Each given queue exists in this region, and the callback queue has a redrive policy."""
    for resource, arn in given_queues(case.answers).items():
        begin = f"{ANSWER_OF_QUEUE[resource]}={arn!r}"
        is_callback, is_here = resource == "UpdatesQueue", f":{case.answers.aws_region}:" in arn
        attributes = account.queue_attributes(name_of(arn)) if is_here else {}
        if is_callback and not is_here:
            yield note(f"{begin}: it is in another region and was not checked.")
        elif attributes.get("QueueArn") != arn:
            yield stop(f"{begin}: there is no such queue in this account and region.")
        elif is_callback and "RedrivePolicy" not in attributes:
            yield note(
                f"{begin}: it has no redrive policy. BIOSPEX never deletes a failure, so each "
                "comes back for days and alerts its administrator each time; docs/deploying.md has "
                "the two commands."
            )


@check()
def own_queues(case: Case) -> Iterator[Finding]:
    """Refuses an answer that names a queue of the stack, as it would remove that queue from it."""
    given = given_queues(case.answers)
    if len(set(given.values())) < len(given):
        yield stop(
            "UPDATES_QUEUE_ARN is the trigger queue: callbacks would be read as triggers. Give "
            "another queue."
        )
        return
    own = case.stack.resources | {"DeadLetterQueue", "TaskEventsQueue", "TaskEventsDeadLetterQueue"}
    names = {f"{case.environment}-{STACK_QUEUES[one]}": one for one in own if one in STACK_QUEUES}
    for replaced, arn in given.items():
        if resource := names.get(name_of(arn)):
            yield stop(
                f"{ANSWER_OF_QUEUE[replaced]}={arn!r}: that is the stack's own queue ({resource}), "
                "which this answer would remove from the stack. Leave the answer empty to keep the "
                "queue (type - at the question)."
            )


@check()
def left_behind(case: Case) -> Iterator[Finding]:
    """Finds what an earlier stack left, as a new stack cannot create others of those names."""
    given = set(given_queues(case.answers))
    given |= {"UpdatesDeadLetterQueue"} if "UpdatesQueue" in given else set()
    for resource, suffix in STACK_QUEUES.items():
        name = f"{case.environment}-{suffix}"
        if resource in case.stack.resources | given or not (url := account.queue_url(name)):
            continue
        begin = f"The queue {name} exists outside the stack, which cannot create another"
        if answer := ANSWER_OF_QUEUE.get(resource):
            yield stop(f"{begin}: answer {answer} with {account.queue_arn(name)} to keep it.")
        else:
            remedy = f"aws sqs delete-queue --queue-url {url}"
            yield stop(f"{begin}. Make sure that it is empty, then: {remedy}")
    group = f"/ecs/{case.environment}-biospex-batch-creator"
    logs = client("logs").describe_log_groups(logGroupNamePrefix=group)["logGroups"]
    if "LogGroup" not in case.stack.resources and group in [one["logGroupName"] for one in logs]:
        yield stop(
            f"The log group {group} exists outside the stack, which cannot create another: aws "
            f"logs delete-log-group --log-group-name {group}"
        )


@check()
def old_lambda(case: Case) -> Iterator[Finding]:
    arn = case.answers.trigger_queue_arn or case.stack.outputs.get("TriggerQueueArn")
    for mapping in account.lambda_mappings(arn) if arn else ():
        yield stop(
            f"The Lambda {mapping['FunctionArn']} takes messages from the same queue "
            f"({mapping['State']}): aws lambda update-event-source-mapping --uuid "
            f"{mapping['UUID']} --no-enabled, and wait until it is Disabled."
        )


# -- the bucket


@check("bucket")
def bucket_is_there(case: Case) -> Iterator[Finding]:
    reasons = {"404": "does not exist", "403": "is not yours"}
    try:
        client("s3").head_bucket(Bucket=case.answers.bucket)
    except ClientError as error:
        if not (reason := reasons.get(account.code_of(error))):
            raise
        yield stop(f"The bucket {case.answers.bucket} {reason}. BIOSPEX creates it, not deploy.sh.")


@check("bucket")
def bucket_encryption(case: Case) -> Iterator[Finding]:
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html"""
    arn = account.bucket_key(case.answers.bucket)
    if arn and case.answers.bucket_key_arn != arn:
        yield stop(
            f"The bucket {case.answers.bucket} encrypts with the KMS key {arn}, which the tasks "
            "may not use yet: answer BUCKET_KEY_ARN with it."
        )


# -- KMS key, secrets and topic

LOOK_UPS = {
    "bucket_key_arn": ("kms", "describe_key", "KeyId"),
    "prefect_api_key_secret_arn": ("secretsmanager", "describe_secret", "SecretId"),
    "prefect_api_auth_string_secret_arn": ("secretsmanager", "describe_secret", "SecretId"),
    "alarm_topic_arn": ("sns", "get_topic_attributes", "TopicArn"),
}
"""The call that finds the thing of an answer, as service, operation and argument."""


@check()
def missing_things(case: Case) -> Iterator[Finding]:
    absent = ("NotFoundException", "ResourceNotFoundException", "NotFound", "InvalidParameter")
    for name, (service, operation, argument) in LOOK_UPS.items():
        arn = getattr(case.answers, name)
        if arn and not found(getattr(client(service), operation), *absent, **{argument: arn}):
            yield stop(
                f"{name.upper()}={arn!r}: there is no such thing in this account and region."
            )


@check("alarm_topic_arn")
def topic(case: Case) -> Iterator[Finding]:
    """CloudWatch may use the topic's key, and somebody has confirmed a subscription."""
    arn, sns = case.answers.alarm_topic_arn, client("sns")
    answer = found(sns.get_topic_attributes, "NotFound", "InvalidParameter", TopicArn=arn)
    if not answer:
        return
    key = answer["Attributes"].get("KmsMasterKeyId", "")
    if key and not account.allows_cloudwatch(key):
        yield stop(
            f"ALARM_TOPIC_ARN={arn!r}: CloudWatch may not use its KMS key {key}, so no alarm would "
            "arrive. Give the topic no key, or a key of your own whose policy lets "
            "cloudwatch.amazonaws.com use kms:Decrypt and kms:GenerateDataKey*."
        )
    pages = sns.get_paginator("list_subscriptions_by_topic").paginate(TopicArn=arn)
    subscriptions = [one["SubscriptionArn"] for page in pages for one in page["Subscriptions"]]
    if not any(one.startswith("arn:") for one in subscriptions):
        finding = stop if case.environment == "prod" else note
        state = "its subscription is not confirmed" if subscriptions else "nobody has subscribed"
        yield finding(f"ALARM_TOPIC_ARN={arn!r}: {state}, so no alarm reaches anybody.")


# -- the network


@check("vpc_id")
def vpc(case: Case) -> Iterator[Finding]:
    ec2, vpc_id = client("ec2"), case.answers.vpc_id
    if not ec2.describe_vpcs(Filters=filters(vpc_id=vpc_id))["Vpcs"]:
        there = ", ".join(sorted(one["VpcId"] for one in ec2.describe_vpcs()["Vpcs"])) or "none"
        yield stop(f"VPC_ID={vpc_id!r}: there is no such VPC here; there are: {there}.")
        return
    hostnames = ec2.describe_vpc_attribute(VpcId=vpc_id, Attribute="enableDnsHostnames")
    if not hostnames["EnableDnsHostnames"]["Value"]:
        yield stop(
            f"VPC_ID={vpc_id!r}: its DNS hostnames are off, and EFS needs them: aws ec2 "
            f"modify-vpc-attribute --vpc-id {vpc_id} --enable-dns-hostnames"
        )


@check("subnet_ids")
def subnets(case: Case) -> Iterator[Finding]:
    """The subnets exist, in the VPC and in different zones."""
    ids, vpc_id = case.answers.subnet_ids.split(","), case.answers.vpc_id
    begin = f"SUBNET_IDS={case.answers.subnet_ids!r}"
    there = client("ec2").describe_subnets(Filters=filters(subnet_id=ids))["Subnets"]
    elsewhere = [one["SubnetId"] for one in there if one["VpcId"] != vpc_id]
    if missing := sorted(set(ids) - {one["SubnetId"] for one in there}):
        yield stop(f"{begin}: there is no {', '.join(missing)} in this account and region.")
    elif vpc_id and elsewhere:
        yield stop(f"{begin}: {', '.join(elsewhere)} is not in {vpc_id}.")
    elif len({one["AvailabilityZone"] for one in there}) < len(there):
        yield stop(f"{begin}: two are in one availability zone, where EFS has one mount target.")


@check("subnet_ids")
def mount_targets(case: Case) -> Iterator[Finding]:
    """Refuses a subnet at another place, where the old mount target still is."""
    made = case.stack.outputs.get("SubnetIds", "")
    old, new = made.split(","), case.answers.subnet_ids.split(",")
    if moved := [one for one in new if one in old and old.index(one) != new.index(one)]:
        yield stop(
            f"SUBNET_IDS={case.answers.subnet_ids!r}: {', '.join(moved)} would change its place in "
            f"{made}, and EFS refuses a second mount target there. Keep the order, add at the end, "
            "and replace a subnet by another in its place."
        )


@check("subnet_ids", "vpc_id", "assign_public_ip")
def public_addresses(case: Case) -> Iterator[Finding]:
    """A task has a public address where its subnet leads to an internet gateway, and only there.

    These are notes, as a network can have a route that its route tables do not show.
    """
    is_public = case.answers.assign_public_ip == "ENABLED"
    for subnet in case.answers.subnet_ids.split(","):
        if account.leads_to_internet_gateway(subnet, case.answers.vpc_id) != is_public:
            has, other = ("no", "DISABLED") if is_public else ("a", "ENABLED")
            yield note(
                f"SUBNET_IDS: {subnet} has {has} route to an internet gateway: choose other "
                f"subnets, or answer ASSIGN_PUBLIC_IP with {other}. docs/deploying.md says what "
                "private subnets need."
            )


# -- the account

# https://docs.aws.amazon.com/AmazonECS/latest/developerguide/service-quotas.html
VCPU_QUOTAS = {"FARGATE": "L-3032A538", "FARGATE_SPOT": "L-36FBB829"}

WORKER_VCPU = 0.75
"""Of worker and listener together."""


def vcpu_of(answers: Answers) -> float:
    """The vCPU of all tasks that run at once."""
    exports = re.search(r"(?<!\S)MAX_IN_FLIGHT=(\d+)(?!\S)", answers.flow_settings)
    if answers.shape == "single":
        return answers.cpu / 1024
    return answers.cpu / 1024 * int(exports[1] if exports else 4) + WORKER_VCPU


@check("cpu", "capacity")
def vcpu_quota(case: Case) -> Iterator[Finding]:
    needed, code = vcpu_of(case.answers), VCPU_QUOTAS[case.answers.capacity]
    look = client("service-quotas").get_service_quota
    answer = found(look, "NoSuchResourceException", ServiceCode="fargate", QuotaCode=code)
    if not answer:
        yield note("The quota of Fargate's vCPU could not be read; see Service Quotas.")
    elif (quota := answer["Quota"]["Value"]) < needed:
        yield stop(
            f"This account may run {quota:g} vCPU of {case.answers.capacity} at once, and the "
            f"answers need {needed:g}: request more of {code} in Service Quotas, or lower CPU or "
            "MAX_IN_FLIGHT."
        )


SERVICES = ("ecs.amazonaws.com", "elasticfilesystem.amazonaws.com")
"""The services that need a service-linked role in the account."""


@check()
def service_roles(case: Case) -> Iterator[Finding]:
    """https://docs.aws.amazon.com/AmazonECS/latest/developerguide/using-service-linked-roles.html"""
    for service in SERVICES:
        if not client("iam").list_roles(PathPrefix=f"/aws-service-role/{service}/")["Roles"]:
            yield stop(
                f"{service} has no role in this account yet, and a first stack fails without it: "
                f"aws iam create-service-linked-role --aws-service-name {service}"
            )
