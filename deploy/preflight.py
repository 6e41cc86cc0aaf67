"""Checks the account and Prefect for deploy.sh; changes nothing.

    python -m deploy.preflight stack biospex-prod       parameters and outputs of a stack
    python -m deploy.preflight queue prod-batch-update  the ARN of a queue; nothing if there is none
    python -m deploy.preflight bucket-key biospex-app   the KMS key of a bucket, if any
    python -m deploy.preflight key-of ARN               the KMS key of a queue or secret, if any
    python -m deploy.preflight region us-east-2         whether AWS has that region
    python -m deploy.preflight order MADE WANTED        subnets, those of the stack at their places
    python -m deploy.preflight prefect …                the state of Prefect, and its problems
    python -m deploy.preflight same POOL TEMPLATE.json  whether the work pool has that template
    python -m deploy.preflight consumers QUEUE-ARN      the consumers of the trigger queue

deploy/answers.py checks the answers and calls the checks of the account.

Standard output is for the shell, as NAME=VALUE. Standard error has sentences for a person; the exit
status is 1 if one of them begins with "stop".
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import boto3
from botocore.exceptions import BotoCoreError, ClientError

ARCHIVED = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes whose objects cannot be read until somebody restores them."""

# https://docs.aws.amazon.com/AmazonECS/latest/developerguide/service-quotas.html
VCPU_QUOTAS = {"FARGATE": "L-3032A538", "FARGATE_SPOT": "L-36FBB829"}

SERVICES = ("ecs.amazonaws.com", "elasticfilesystem.amazonaws.com")
"""The services that need a service-linked role in the account."""

ENVIRONMENTS = ("prod", "dev", "loc")


@dataclass(frozen=True)
class Finding:
    """A problem that the operator has to know about.

    Attributes:
        level: ``stop`` if the deployment would fail or do harm, else ``note``.
        sentence: the problem, its effect and the remedy.
    """

    level: Literal["stop", "note"]
    sentence: str


@dataclass(frozen=True)
class Plan:
    """The part of the answers that the checks need.

    Attributes:
        bucket_key_arn: the KMS key that the splitter will be allowed to use, or empty.
        trigger_queue_arn: an existing queue that is kept, or empty for the stack's own.
        vcpu: of all tasks that run at once.
        capacity: FARGATE or FARGATE_SPOT.
    """

    bucket: str
    vpc_id: str
    bucket_key_arn: str
    trigger_queue_arn: str
    vcpu: float
    capacity: str


def stop(sentence: str) -> Finding:
    return Finding("stop", sentence)


def note(sentence: str) -> Finding:
    return Finding("note", sentence)


def code_of(error: ClientError) -> str:
    return str(error.response["Error"]["Code"])


# -- AWS


def bucket_is_there(plan: Plan) -> Iterator[Finding]:
    try:
        boto3.client("s3").head_bucket(Bucket=plan.bucket)
    except ClientError as error:
        if code_of(error) not in ("404", "403"):
            raise
        is_not = "does not exist" if code_of(error) == "404" else "is not yours"
        yield stop(f"The bucket {plan.bucket} {is_not}. BIOSPEX creates it, not deploy.sh.")


def bucket_key(bucket: str) -> str:
    """The ARN of the customer's KMS key that the bucket encrypts with, or nothing."""
    try:
        answer = boto3.client("s3").get_bucket_encryption(Bucket=bucket)
    except ClientError as error:
        if code_of(error) == "ServerSideEncryptionConfigurationNotFoundError":
            return ""
        raise
    for rule in answer["ServerSideEncryptionConfiguration"]["Rules"]:
        default = rule.get("ApplyServerSideEncryptionByDefault", {})
        key = default.get("KMSMasterKeyID", "")
        if default.get("SSEAlgorithm", "").startswith("aws:kms") and key:
            found = boto3.client("kms").describe_key(KeyId=key)["KeyMetadata"]
            return found["Arn"] if found["KeyManager"] == "CUSTOMER" else ""
    return ""


def bucket_encryption(plan: Plan) -> Iterator[Finding]:
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html"""
    arn = bucket_key(plan.bucket)
    if not arn:
        return
    if plan.bucket_key_arn != arn:
        yield stop(
            f"The bucket {plan.bucket} encrypts with the KMS key {arn}, which the tasks may not "
            "use yet: answer BUCKET_KEY_ARN with it."
        )
    if not leaves_access_to_iam(arn):
        yield note(
            f"The policy of the KMS key {arn} does not leave access to IAM: add the role of the "
            "stack's output SplitterRoleArn or SingleRoleArn, with kms:Decrypt and "
            "kms:GenerateDataKey."
        )


def leaves_access_to_iam(key_arn: str) -> bool:
    """Whether a key's policy defers to IAM, as the policy of a key made in the console does."""
    policy = boto3.client("kms").get_key_policy(KeyId=key_arn, PolicyName="default")["Policy"]
    return f":iam::{key_arn.split(':')[4]}:root" in policy


def object_lock(plan: Plan) -> Iterator[Finding]:
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock.html"""
    try:
        answer = boto3.client("s3").get_object_lock_configuration(Bucket=plan.bucket)
    except ClientError as error:
        if code_of(error) == "ObjectLockConfigurationNotFoundError":
            return
        raise
    if answer["ObjectLockConfiguration"].get("Rule"):
        yield stop(
            f"The bucket {plan.bucket} locks each new object (Object Lock, default retention): S3 "
            "then refuses uploads without a checksum, and batches cannot expire. Remove the "
            "default retention or use another bucket."
        )


def lifecycle_rules(bucket: str) -> list[Any]:
    """The enabled rules of a bucket."""
    try:
        rules = boto3.client("s3").get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    except ClientError as error:
        if code_of(error) == "NoSuchLifecycleConfiguration":
            return []
        raise
    return [rule for rule in rules if rule["Status"] == "Enabled"]


def touches(rule: Any, prefix: str) -> bool:
    """Whether a lifecycle rule applies to some object under a prefix."""
    conditions = rule.get("Filter", {})
    conditions = conditions.get("And", conditions)
    own = conditions.get("Prefix", rule.get("Prefix", ""))
    return bool(own.startswith(prefix) or prefix.startswith(own))


def versioning(plan: Plan) -> Iterator[Finding]:
    if boto3.client("s3").get_bucket_versioning(Bucket=plan.bucket).get("Status") != "Enabled":
        return
    rules = lifecycle_rules(plan.bucket)
    if not any("NoncurrentVersionExpiration" in rule and touches(rule, "batch/") for rule in rules):
        yield note(
            f"The bucket {plan.bucket} keeps old versions and has no rule that removes them, so "
            "you pay on for expired and replaced batches: add NoncurrentVersionExpiration for "
            "batch/, as in deploy/lifecycle.json."
        )


def archived_exports(plan: Plan) -> Iterator[Finding]:
    for rule in lifecycle_rules(plan.bucket):
        for step in rule.get("Transitions", ()):
            for prefix in ("export/", "batch/"):
                if step.get("StorageClass") in ARCHIVED and touches(rule, prefix):
                    yield stop(
                        f"A lifecycle rule of the bucket {plan.bucket} moves {prefix} to "
                        f"{step['StorageClass']}, where it cannot be read: exclude {prefix}."
                    )
    listed = boto3.client("s3").list_objects_v2(Bucket=plan.bucket, Prefix="export/")
    archived = [one for one in listed.get("Contents", ()) if one.get("StorageClass") in ARCHIVED]
    if archived:
        yield note(
            f"{len(archived)} of the first {listed['KeyCount']} exports in {plan.bucket} are "
            f"archived ({archived[0]['Key']}): restore an export before you request its batches."
        )


def s3_endpoint(plan: Plan) -> Iterator[Finding]:
    """https://docs.aws.amazon.com/vpc/latest/privatelink/vpc-endpoints-s3.html"""
    if not plan.vpc_id:
        return
    ec2 = boto3.client("ec2")
    service = f"com.amazonaws.{ec2.meta.region_name}.s3"
    found = ec2.describe_vpc_endpoints(
        Filters=[
            {"Name": "vpc-id", "Values": [plan.vpc_id]},
            {"Name": "service-name", "Values": [service]},
            {"Name": "vpc-endpoint-type", "Values": ["Gateway"]},
        ]
    )["VpcEndpoints"]
    if not found:
        yield note(
            f"{plan.vpc_id} has no gateway endpoint for S3. With a NAT each GB of an export costs "
            "some $0.045; the endpoint is free: aws ec2 create-vpc-endpoint --vpc-id "
            f"{plan.vpc_id} --service-name {service} --route-table-ids TABLES-OF-THE-SUBNETS"
        )


def vcpu_quota(plan: Plan) -> Iterator[Finding]:
    try:
        quota = boto3.client("service-quotas").get_service_quota(
            ServiceCode="fargate", QuotaCode=VCPU_QUOTAS[plan.capacity]
        )["Quota"]
    except ClientError as error:
        if code_of(error) != "NoSuchResourceException":
            raise
        yield note("The quota of Fargate's vCPU could not be read; see Service Quotas.")
        return
    if quota["Value"] < plan.vcpu:
        yield stop(
            f"This account may run {quota['Value']:g} vCPU of {plan.capacity} at once, and the "
            f"answers need {plan.vcpu:g}: request more of {VCPU_QUOTAS[plan.capacity]} in Service "
            "Quotas, or lower CPU or MAX_IN_FLIGHT."
        )


def service_roles(plan: Plan) -> Iterator[Finding]:
    """https://docs.aws.amazon.com/AmazonECS/latest/developerguide/using-service-linked-roles.html"""
    iam = boto3.client("iam")
    for service in SERVICES:
        if not iam.list_roles(PathPrefix=f"/aws-service-role/{service}/")["Roles"]:
            yield stop(
                f"{service} has no role in this account yet, and a first stack fails without it: "
                f"aws iam create-service-linked-role --aws-service-name {service}"
            )


def queue_arn(name: str) -> str:
    """The ARN of a queue by its name; empty only if there is none."""
    sqs = boto3.client("sqs")
    try:
        url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    except ClientError as error:
        # queryCompatible: the older code, or the newer
        if code_of(error).rpartition(".")[2] not in ("NonExistentQueue", "QueueDoesNotExist"):
            raise
        return ""
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    return attributes["Attributes"]["QueueArn"]


def queue_url(name: str) -> str:
    return str(boto3.client("sqs").get_queue_url(QueueName=name)["QueueUrl"])


def queue_attributes(arn: str) -> dict[str, str]:
    """All attributes of a queue of this account and region."""
    found: Any = boto3.client("sqs").get_queue_attributes(
        QueueUrl=queue_url(arn.rpartition(":")[2]), AttributeNames=["All"]
    )
    return dict(found["Attributes"])


def key_of(arn: str) -> str:
    """The customer's KMS key that a queue or a secret encrypts with; empty if there is none."""
    if ":sqs:" in arn:
        if arn.split(":")[3] != boto3.client("sqs").meta.region_name:
            return ""
        key = queue_attributes(arn).get("KmsMasterKeyId", "")
    else:
        manager: Any = boto3.client("secretsmanager")
        key = manager.describe_secret(SecretId=arn).get("KmsKeyId", "")
    if not key:
        return ""
    found = boto3.client("kms").describe_key(KeyId=key)["KeyMetadata"]
    return found["Arn"] if found["KeyManager"] == "CUSTOMER" else ""


def regions() -> set[str]:
    """Every region of AWS, as this boto3 knows them."""
    session = boto3.Session()
    return {
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("ecs", partition)
    }


def kept_queue(plan: Plan) -> Iterator[Finding]:
    """Checks redrive policy and retention of a kept trigger queue."""
    if not plan.trigger_queue_arn:
        return
    name = plan.trigger_queue_arn.rpartition(":")[2]
    if queue_arn(name) != plan.trigger_queue_arn:
        return  # answers.py reports it
    attributes = queue_attributes(plan.trigger_queue_arn)
    if "RedrivePolicy" not in attributes:
        yield note(
            f"The queue {name} has no redrive policy, so a message that cannot be answered comes "
            "back again and again; the next step gives it the stack's dead-letter queue."
        )
    if int(attributes["MessageRetentionPeriod"]) >= 1209600:
        yield note(
            f"The queue {name} keeps messages for 14 days, as long as its dead-letter queue. A "
            "dead letter's age counts from its first sending, so a late one would be lost. Set "
            "the queue's MessageRetentionPeriod to 604800."
        )


def lambda_mappings(trigger_queue_arn: str) -> list[Any]:
    """The event source mappings of the queue that are not Disabled."""
    pages = (
        boto3.client("lambda")
        .get_paginator("list_event_source_mappings")
        .paginate(EventSourceArn=trigger_queue_arn)
    )
    found = [mapping for page in pages for mapping in page["EventSourceMappings"]]
    return [mapping for mapping in found if mapping["State"] != "Disabled"]


def old_lambda(plan: Plan) -> Iterator[Finding]:
    return old_lambda_of(plan.trigger_queue_arn)


def old_lambda_of(trigger_queue_arn: str) -> Iterator[Finding]:
    for mapping in lambda_mappings(trigger_queue_arn) if trigger_queue_arn else ():
        yield stop(
            f"The Lambda {mapping['FunctionArn']} takes messages from the same queue "
            f"({mapping['State']}): aws lambda update-event-source-mapping --uuid "
            f"{mapping['UUID']} --no-enabled, and wait until it is Disabled."
        )


AWS_CHECKS: tuple[Callable[[Plan], Iterator[Finding]], ...] = (
    bucket_is_there,
    bucket_encryption,
    object_lock,
    versioning,
    archived_exports,
    s3_endpoint,
    vcpu_quota,
    service_roles,
    kept_queue,
    old_lambda,
)


def check_aws(plan: Plan) -> Iterator[Finding]:
    """All findings; a check that AWS refuses is a note."""
    for check in AWS_CHECKS if plan.bucket else ():
        try:
            found = list(check(plan))
        except ClientError as error:
            yield note(f"{check.__name__} could not be checked: {error}")
        else:
            yield from found
            if check is bucket_is_there and found:
                return


def consumers(trigger_queue_arn: str) -> tuple[list[str], list[Finding]]:
    """The consumers of the queue, and a finding unless there is exactly one."""
    found = [f"Lambda {one['FunctionArn']}" for one in lambda_mappings(trigger_queue_arn)]
    found += [f"listener {name}" for name in running_listeners()]
    if len(found) == 1:
        return found, []
    if not found:
        sentence = "Nobody takes triggers from the queue: start the listener or the Lambda."
    else:
        sentence = f"{len(found)} consumers take triggers from the queue: stop all but one."
    return found, [stop(sentence)]


# -- the stack


def in_order(made: str, wanted: str) -> str:
    """The wanted subnets, with those of the stack at their places, where they have mount targets.

    Args:
        made: the stack's own, separated by commas.
    """
    old, new = made.split(","), wanted.split(",")
    added = [one for one in new if one not in old]
    kept = [one if one in new else added.pop(0) for one in old if one in new or added]
    return ",".join([*kept, *added])


def stack(name: str) -> dict[str, str]:
    """A stack's parameters and outputs, by names for the shell; empty if there is no stack."""
    try:
        [found] = boto3.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
    except ClientError as error:
        if "does not exist" in str(error):
            return {}
        raise
    lines = {"stack_exists": "1"}
    for one in found.get("Parameters", ()):
        lines[f"given_{one['ParameterKey']}"] = one["ParameterValue"]
    for one in found.get("Outputs", ()):
        lines[f"output_{one['OutputKey']}"] = one["OutputValue"]
    return lines


# -- Prefect. Its import takes seconds, so the functions that need it import it.


def api_url() -> str:
    """The API of this shell's Prefect profile; may be empty."""
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value() or "")


def is_open(url: str) -> bool:
    """Whether the API answers without authentication.

    Raises:
        URLError: if it does not answer, or not as Prefect's API does.
    """
    request = Request(  # noqa: S310, the operator's own address
        f"{url}/work_pools/filter", b"{}", {"Content-Type": "application/json"}
    )
    try:
        with urlopen(request, timeout=20):  # noqa: S310
            return True
    except HTTPError as error:
        if error.code in (401, 403):
            return False
        raise


def is_this_machine(host: str) -> bool:
    return host in ("localhost", "0.0.0.0", "::1") or host.startswith("127.")  # noqa: S104


def check_api(url: str, *, open_is_wanted: bool) -> Iterator[Finding]:
    """Runs on ECS can reach the API, and it needs authentication."""
    if open_is_wanted:
        return
    if is_this_machine(urlsplit(url).hostname or ""):
        yield stop(
            f"{url} is this machine: tasks on ECS cannot reach it. Give an address that they can "
            "reach; docs/where-prefect-runs.md lists the ways (--open-api: go on all the same)."
        )
    try:
        if is_open(url):
            yield stop(
                f"{url} answers anybody, and anybody who reaches it can run code in the tasks' "
                "roles. Set PREFECT_SERVER_API_AUTH_STRING at the server and "
                "PREFECT_API_AUTH_STRING here (--open-api: go on all the same)."
            )
    except (URLError, TimeoutError) as error:
        yield stop(f"{url} does not answer: {error}")


def check_websocket() -> Iterator[Finding]:
    """Heartbeats reach the API: a proxy may refuse their WebSocket."""
    from flows.support.heartbeats import websocket_problem

    if problem := websocket_problem():
        yield note(problem)


def running_listeners() -> list[str]:
    """Names of the running listeners."""
    return [run.name for run in listeners() if run.state_type == "RUNNING"]


def listeners() -> list[Any]:
    """The listener's running and scheduled runs."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowRunFilter

    with get_client(sync_client=True) as prefect:
        found = prefect.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": ["listen"]}}),
            flow_run_filter=FlowRunFilter.model_validate(
                {"state": {"type": {"any_": ["RUNNING", "SCHEDULED"]}}}
            ),
        )
    return [run for run in found if run.deployment_id]


def prefect_state(environment: str, pools: Sequence[str], block: str) -> dict[str, str]:
    """The state of Prefect, by names for the shell.

    A pending listener does not count, as its task may never start. One more does no harm: the later
    of two takes over.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_UI_URL

    lines = {"ui": str(PREFECT_UI_URL.value() or "")}
    with get_client(sync_client=True) as prefect:
        for number, pool in enumerate(pools):
            with suppress(ObjectNotFound):
                found = prefect.read_work_pool(pool)
                lines[f"pool_type_{number}"] = found.type
                lines[f"pool_owner_{number}"] = owner_of(found.base_job_template)
        with suppress(ObjectNotFound):
            tags = prefect.read_deployment_by_name("create-batches/create-batches").tags
            lines["deployment_owner"] = next((one for one in tags if one in ENVIRONMENTS), "")
        with suppress(ObjectNotFound):
            if prefect.read_block_document_by_name(block, "biospex-workspace"):
                lines["blocks_are_saved"] = "yes"
        if prefect.read_automations_by_name(notice_name(environment)):
            lines["has_notice"] = "yes"
    states = {run.state_type for run in listeners()}
    lines["listener"] = "scheduled" if "SCHEDULED" in states else "running" if states else ""
    return lines


def owner_of(template: Any) -> str:
    """The environment of a work pool that deploy.sh made; empty for another pool."""
    env = template.get("variables", {}).get("properties", {}).get("env", {}).get("default", {})
    return str(env.get("BIOSPEX_ENVIRONMENT", ""))


def check_pools(environment: str, state: dict[str, str], pools: Sequence[str]) -> Iterator[Finding]:
    """Refuses the pools and deployments of another environment, which this one would replace."""
    owned = {"The deployment create-batches": state.get("deployment_owner")}
    for number, pool in enumerate(pools):
        kind = state.get(f"pool_type_{number}")
        if kind not in (None, "ecs"):
            yield stop(f"The work pool {pool} is of the type {kind}, not ecs.")
        owned[f"The work pool {pool}"] = state.get(f"pool_owner_{number}")
    for thing, owner in owned.items():
        if owner and owner != environment:
            yield stop(
                f"{thing} belongs to {owner}: each environment needs a Prefect API of its own."
            )


def check_notification_block(block: str) -> Iterator[Finding]:
    """Whether the notification block, as type and name, has been saved."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    kind, slash, name = block.partition("/")
    if not slash:
        return
    with get_client(sync_client=True) as prefect:
        try:
            prefect.read_block_document_by_name(name, kind)
        except ObjectNotFound:
            yield stop(f"NOTIFICATION_BLOCK={block!r}: create the block in the Prefect UI.")


def notice_name(environment: str) -> str:
    return f"{environment}: tell me when an export fails"


def notice(environment: str, block: str) -> str:
    """The automation that notifies of failed exports, for ``prefect automation create``.

    Args:
        block: a notification block as type and name, ``slack-webhook/operators``.
    """
    from prefect.client.orchestration import get_client

    kind, _, name = block.partition("/")
    with get_client(sync_client=True) as prefect:
        block_document_id = str(prefect.read_block_document_by_name(name, kind).id)
    ended = ["prefect.flow-run.Failed", "prefect.flow-run.Crashed"]
    return json.dumps(
        {
            "name": notice_name(environment),
            "description": "Sends the sentence of the failure callback. docs/operations.md",
            "trigger": {
                "type": "event",
                "posture": "Reactive",
                "match": {"prefect.resource.id": "prefect.flow-run.*"},
                "match_related": {
                    "prefect.resource.role": "flow",
                    "prefect.resource.name": "create-batches",
                },
                "expect": ended,
                "threshold": 1,
            },
            "actions": [
                {
                    "type": "send-notification",
                    "block_document_id": block_document_id,
                    "subject": f"BIOSPEX {environment}: {{{{ flow_run.name }}}} has failed",
                    "body": "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
                }
            ],
        }
    )


def has_template(pool: str, path: str) -> bool:
    """Whether the work pool has the template of a file."""
    from prefect.client.orchestration import get_client

    template = json.loads(Path(path).read_text())
    with get_client(sync_client=True) as prefect:
        return bool(prefect.read_work_pool(pool).base_job_template == template)


# -- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 1 if a finding stops the deployment."""
    options = _options(arguments)
    try:
        result = options.run(options)
    except (ClientError, BotoCoreError) as error:
        return report([stop(f"AWS answers with an error: {error}")])
    if isinstance(result, str):
        print(result)
        return 0
    return int(result or 0)


def report(findings: Iterable[Finding]) -> int:
    """Print the findings; the result is 1 if one of them stops the deployment."""
    status = 0
    for finding in findings:
        print(f"{finding.level}: {finding.sentence}", file=sys.stderr)
        status |= finding.level == "stop"
    return status


def show(lines: dict[str, str]) -> None:
    for name, value in lines.items():
        print(f"{name}={value}")


def _prefect(options: argparse.Namespace) -> int:
    url = api_url()
    if urlsplit(url).scheme not in ("http", "https"):
        return 1  # answers.py reports it
    findings = list(check_api(url, open_is_wanted=options.open_api))
    try:
        state = prefect_state(options.environment, options.pools, options.block)
        findings += check_pools(options.environment, state, options.pools)
        findings += check_notification_block(options.notification_block)
        findings += check_websocket()
    except Exception as error:
        if not findings:
            findings = [stop(f"{url} answers with an error: {error}")]
    else:
        show(state)
    return report(findings)


def _consumers(options: argparse.Namespace) -> int:
    found, findings = consumers(options.queue_arn)
    for one in found:
        print(one)
    return report(findings)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.preflight")
    commands = parser.add_subparsers(required=True)

    # A command's result is a text to print or an exit status.
    def command(name: str, run: Callable[[Any], str | int | None], *positional: str) -> Any:
        made = commands.add_parser(name)
        made.set_defaults(run=run)
        for argument in positional:
            made.add_argument(argument)
        return made

    command("stack", lambda given: show(stack(given.name)), "name")
    command("queue", lambda given: queue_arn(given.name), "name")
    command("bucket-key", lambda given: bucket_key(given.bucket), "bucket")
    command("key-of", lambda given: key_of(given.arn) if given.arn else "", "arn")
    command("region", lambda given: given.name not in regions(), "name")
    command("order", lambda given: in_order(given.made, given.wanted), "made", "wanted")
    command("api-url", lambda given: api_url())
    command("same", lambda given: not has_template(given.pool, given.template), "pool", "template")
    command("notice", lambda given: notice(given.environment, given.block), "environment", "block")
    command("consumers", _consumers, "queue_arn")
    prefect = command("prefect", _prefect)
    prefect.add_argument("--environment", required=True)
    prefect.add_argument("--block", required=True)
    prefect.add_argument("--open-api", action="store_true")
    prefect.add_argument("--notification-block", default="")
    prefect.add_argument("pools", nargs="*")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
