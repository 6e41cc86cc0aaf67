"""Checks of the answers and of the account before anything is created; they change nothing.

A new check is one function with the decorator ``check``. deploy/server.py has those of Prefect.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

from botocore.exceptions import ClientError
from pydantic import ValidationError

from deploy import account
from deploy.account import client, filters, found
from deploy.answers import Case, problem
from splitter.settings import Allowed, Docs, Settings


class Finding(NamedTuple):
    """A problem that the operator has to know about.

    Attributes:
        level: ``stop`` if the deployment would fail or do harm, else ``note``.
        sentence: the problem, its effect and the remedy.
    """

    level: Literal["stop", "note"]
    sentence: str


stop = partial(Finding, "stop")
note = partial(Finding, "note")

ABSENT = ("403", "404", "NoSuchBucket", "ResourceNotFoundException", "NotFound", "InvalidParameter")
"""AWS's codes for a thing that is not there, or that is somebody else's."""

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
    answers = case.answers
    wrong = {name: why for name, text in answers.items() if (why := problem(name, text))}
    for name, why in wrong.items():
        yield stop(f"{name}={answers[name]!r}: {why}.")
    case = replace(case, answers={n: text for n, text in answers.items() if n not in wrong})
    for function, needs in CHECKS:
        if all(case.answers.get(name) for name in needs):
            try:
                yield from list(function(case))
            except ClientError as error:
                if account.code_of(error) not in ABSENT:  # missing_things reports it
                    yield note(f"{function.__name__} could not be checked: {error}")


# -- answers beside each other

# https://docs.aws.amazon.com/AmazonECS/latest/developerguide/fargate-tasks-services.html
MEMORY_OF_CPU = {
    "256": (512, 1024, 2048),
    "512": range(1024, 4096 + 1, 1024),
    "1024": range(2048, 8192 + 1, 1024),
    "2048": range(4096, 16384 + 1, 1024),
    "4096": range(8192, 30720 + 1, 1024),
    "8192": range(16384, 61440 + 1, 4096),
    "16384": range(32768, 122880 + 1, 8192),
}


@check("CPU", "MEMORY")
def memory_of_cpu(case: Case) -> Iterator[Finding]:
    cpu, memory = case.answers["CPU"], case.answers["MEMORY"]
    allowed = MEMORY_OF_CPU[cpu]
    if int(memory) not in allowed:
        yield stop(
            f"MEMORY={memory}: Fargate gives {cpu} CPU units {allowed[0]} to {allowed[-1]} MiB, in "
            "the steps that its table lists."
        )


@check("FLOW_SETTINGS")
def flow_settings(case: Case) -> Iterator[Finding]:
    """Checks each setting's name and value as the run itself reads them."""
    models = {n.upper(): model for model in (Settings, Allowed, Docs) for n in model.model_fields}
    for one in case.answers["FLOW_SETTINGS"].split():
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


@check()
def missing_secret(case: Case) -> Iterator[Finding]:
    if case.answers.get("PREFECT_SECRET_ARN") == "" and not case.open_api:
        yield stop(
            "PREFECT_SECRET_ARN is empty: tasks sign in with a secret of Secrets Manager. Create "
            "it as docs/where-prefect-runs.md shows (--open-api: the API has no authentication)."
        )


@check()
def topic_of_production(case: Case) -> Iterator[Finding]:
    if case.environment == "prod" and case.answers.get("ALARM_TOPIC_ARN") == "":
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


def given_queues(case: Case) -> dict[str, str]:
    """The ARNs of the existing queues that replace queues of the stack."""
    given = {resource: case.answers.get(name) for resource, name in ANSWER_OF_QUEUE.items()}
    return {resource: arn for resource, arn in given.items() if arn}


@check()
def queues(case: Case) -> Iterator[Finding]:
    """Each given queue exists in this region, and the callback queue has a redrive policy."""
    for resource, arn in given_queues(case).items():
        begin = f"{ANSWER_OF_QUEUE[resource]}={arn!r}"
        is_callback, is_here = resource == "UpdatesQueue", f":{case.answers['AWS_REGION']}:" in arn
        attributes = account.queue(arn) if is_here else {}
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
    given = given_queues(case)
    if len(set(given.values())) < len(given):
        yield stop(
            "UPDATES_QUEUE_ARN is the trigger queue: callbacks would be read as triggers. Give "
            "another queue."
        )
        return
    own = case.stack.resources & STACK_QUEUES.keys()
    names = {f"{case.environment}-{STACK_QUEUES[one]}": one for one in own}
    for replaced, arn in given.items():
        if resource := names.get(arn.rpartition(":")[2]):
            yield stop(
                f"{ANSWER_OF_QUEUE[replaced]}={arn!r}: that is the stack's own queue ({resource}), "
                "which this answer would remove from the stack. Leave the answer empty to keep the "
                "queue (type - at the question)."
            )


@check()
def left_behind(case: Case) -> Iterator[Finding]:
    """Finds what an earlier stack left, as a new stack cannot create others of those names."""
    given = set(given_queues(case))
    given |= {"UpdatesDeadLetterQueue"} if "UpdatesQueue" in given else set()
    for resource, suffix in STACK_QUEUES.items():
        name = f"{case.environment}-{suffix}"
        if resource in case.stack.resources | given or not (queue := account.queue(name)):
            continue
        begin = f"The queue {name} exists outside the stack, which cannot create another"
        if answer := ANSWER_OF_QUEUE.get(resource):
            yield stop(f"{begin}: answer {answer} with {queue['QueueArn']} to keep it.")
        else:
            remedy = f"aws sqs delete-queue --queue-url {queue['QueueUrl']}"
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
    arn = case.answers.get("TRIGGER_QUEUE_ARN") or case.stack.outputs.get("TriggerQueueArn")
    for mapping in account.lambda_mappings(arn) if arn else ():
        yield stop(
            f"The Lambda {mapping['FunctionArn']} takes messages from the same queue "
            f"({mapping['State']}): aws lambda update-event-source-mapping --uuid "
            f"{mapping['UUID']} --no-enabled, and wait until it is Disabled."
        )


# -- the bucket


@check("BUCKET")
def object_lock(case: Case) -> Iterator[Finding]:
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock.html"""
    look = client("s3").get_object_lock_configuration
    answer = found(look, "ObjectLockConfigurationNotFoundError", Bucket=case.answers["BUCKET"])
    if answer and answer["ObjectLockConfiguration"].get("Rule"):
        yield stop(
            f"The bucket {case.answers['BUCKET']} locks each new object (Object Lock, default "
            "retention): S3 then refuses uploads without a checksum, and batches cannot expire. "
            "Remove the default retention or use another bucket."
        )


@check("BUCKET")
def archived_exports(case: Case) -> Iterator[Finding]:
    rules = account.lifecycle_rules(case.answers["BUCKET"])
    for rule in (one for one in rules if one["Status"] == "Enabled"):
        conditions = rule.get("Filter", {})
        own = conditions.get("And", conditions).get("Prefix", rule.get("Prefix", ""))
        classes = {one.get("StorageClass") for one in rule.get("Transitions", ())}
        for prefix in ("export/", "batch/"):
            is_touched = own.startswith(prefix) or prefix.startswith(own)
            if is_touched and classes & {"GLACIER", "DEEP_ARCHIVE"}:
                yield stop(
                    f"A lifecycle rule of the bucket {case.answers['BUCKET']} archives {prefix}, "
                    f"which cannot be read then: exclude {prefix}."
                )


# -- things that answers name

LOOK_UPS: dict[str, Callable[[str], Any]] = {
    "BUCKET": lambda name: client("s3").head_bucket(Bucket=name),
    # A filter has no error for an id that is too short.
    "VPC_ID": lambda name: client("ec2").describe_vpcs(Filters=filters(vpc_id=name))["Vpcs"],
    "PREFECT_SECRET_ARN": lambda arn: client("secretsmanager").describe_secret(SecretId=arn),
    "ALARM_TOPIC_ARN": lambda arn: client("sns").get_topic_attributes(TopicArn=arn),
}


@check()
def missing_things(case: Case) -> Iterator[Finding]:
    for name, look_up in LOOK_UPS.items():
        text = case.answers.get(name)
        try:
            if text and not found(partial(look_up, text), *ABSENT):
                yield stop(f"{name}={text!r}: there is no such thing in this account and region.")
        except ClientError as error:  # the others can be looked up all the same
            yield note(f"{name} could not be checked: {error}")


@check("ALARM_TOPIC_ARN")
def topic(case: Case) -> Iterator[Finding]:
    """CloudWatch may use the topic's key, and somebody has confirmed a subscription."""
    arn, sns = case.answers["ALARM_TOPIC_ARN"], client("sns")
    answer = sns.get_topic_attributes(TopicArn=arn)
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


@check("VPC_ID")
def vpc(case: Case) -> Iterator[Finding]:
    ec2, vpc_id = client("ec2"), case.answers["VPC_ID"]
    hostnames = ec2.describe_vpc_attribute(VpcId=vpc_id, Attribute="enableDnsHostnames")
    if not hostnames["EnableDnsHostnames"]["Value"]:
        yield stop(
            f"VPC_ID={vpc_id!r}: its DNS hostnames are off, and EFS needs them: aws ec2 "
            f"modify-vpc-attribute --vpc-id {vpc_id} --enable-dns-hostnames"
        )


@check("SUBNET_IDS")
def subnets(case: Case) -> Iterator[Finding]:
    """The subnets exist, in the VPC and in different zones."""
    ids, vpc_id = case.answers["SUBNET_IDS"].split(","), case.answers.get("VPC_ID")
    begin = f"SUBNET_IDS={','.join(ids)!r}"
    chosen = [{"Name": "subnet-id", "Values": ids}]
    there = client("ec2").describe_subnets(Filters=chosen)["Subnets"]
    elsewhere = [one["SubnetId"] for one in there if one["VpcId"] != vpc_id]
    if missing := sorted(set(ids) - {one["SubnetId"] for one in there}):
        yield stop(f"{begin}: there is no {', '.join(missing)} in this account and region.")
    elif vpc_id and elsewhere:
        yield stop(f"{begin}: {', '.join(elsewhere)} is not in {vpc_id}.")
    elif len({one["AvailabilityZone"] for one in there}) < len(ids):
        yield stop(f"{begin}: two are in one availability zone, where EFS has one mount target.")


@check("SUBNET_IDS")
def mount_targets(case: Case) -> Iterator[Finding]:
    """Refuses a subnet at another place, where the old mount target still is."""
    made = case.stack.outputs.get("SubnetIds", "")
    old, new = made.split(","), case.answers["SUBNET_IDS"].split(",")
    if moved := [one for one in new if one in old and old.index(one) != new.index(one)]:
        yield stop(
            f"SUBNET_IDS={','.join(new)!r}: {', '.join(moved)} would change its place in {made}, "
            f"and EFS refuses a second mount target there. Keep the order, add at the end, "
            "and replace a subnet by another in its place."
        )


@check("SUBNET_IDS", "VPC_ID", "ASSIGN_PUBLIC_IP")
def public_addresses(case: Case) -> Iterator[Finding]:
    """A task has a public address where its subnet leads to an internet gateway, and only there.

    These are notes, as a network can have a route that its route tables do not show.
    """
    is_public = case.answers["ASSIGN_PUBLIC_IP"] == "ENABLED"
    for subnet in case.answers["SUBNET_IDS"].split(","):
        if account.leads_to_internet_gateway(subnet, case.answers["VPC_ID"]) != is_public:
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


@check("CPU", "CAPACITY", "SHAPE")
def vcpu_quota(case: Case) -> Iterator[Finding]:
    """Compares the quota with the vCPU of all tasks that run at once."""
    answers, capacity = case.answers, case.answers["CAPACITY"]
    needed, code = int(answers["CPU"]) / 1024, VCPU_QUOTAS[capacity]
    if answers["SHAPE"] == "pools":
        exports = re.search(r"(?<!\S)MAX_IN_FLIGHT=(\d+)(?!\S)", answers.get("FLOW_SETTINGS", ""))
        needed = needed * int(exports[1] if exports else 4) + WORKER_VCPU
    look = client("service-quotas").get_service_quota
    answer = found(look, "NoSuchResourceException", ServiceCode="fargate", QuotaCode=code)
    if not answer:
        yield note("The quota of Fargate's vCPU could not be read; see Service Quotas.")
    elif (quota := answer["Quota"]["Value"]) < needed:
        yield stop(
            f"This account may run {quota:g} vCPU of {capacity} at once, and the answers need "
            f"{needed:g}: request more of {code} in Service Quotas, or lower CPU or MAX_IN_FLIGHT."
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
