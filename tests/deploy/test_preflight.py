"""Each check of deploy/preflight.py, in a bad and in a good account."""

import json
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from deploy import account, preflight, steps
from deploy.answers import Case
from devtools.services import REGION
from tests.helpers.answers import case, only
from tests.helpers.biospex import Biospex, client
from tests.helpers.stacks import remove_what_is_kept

pytestmark = pytest.mark.usefixtures("aws")


@pytest.fixture(autouse=True)
def region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)


# -- the bucket


def test_a_missing_bucket(biospex: Biospex) -> None:
    assert "BUCKET" not in missing(BUCKET=biospex.bucket)
    found = [one.sentence for one in preflight.findings(case(BUCKET=f"missing-{uuid4()}"))]
    [sentence] = [one for one in found if "missing-" in one]
    assert "there is no such thing in this account" in sentence


def encrypted(bucket: str) -> str:
    key = client("kms").create_key()["KeyMetadata"]
    default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key["KeyId"]}
    client("s3").put_bucket_encryption(
        Bucket=bucket,
        ServerSideEncryptionConfiguration={
            "Rules": [{"ApplyServerSideEncryptionByDefault": default}]
        },
    )
    return str(key["Arn"])


def test_the_key_of_the_bucket_is_found(biospex: Biospex) -> None:
    assert account.bucket_key(biospex.bucket) == ""
    arn = encrypted(biospex.bucket)
    assert account.bucket_key(biospex.bucket) == arn


def test_a_key_of_another_account_is_taken_as_the_bucket_names_it() -> None:
    arn = f"arn:aws:kms:us-east-2:999999999999:key/{uuid4()}"
    assert account.customers_key(arn) == arn


def test_an_update_takes_no_key_from_the_tasks(
    biospex: Biospex, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = case(BUCKET=biospex.bucket, PREFECT_SECRET_ARN="").answers
    made = Case("dev", answers, account.Stack({"BucketKeyArn": "of-the-stack"}))
    steps.Deployment(made, "commit", "docker", dry_run=True).deploy_stack("")
    assert " BucketKeyArn=of-the-stack " in capsys.readouterr().out
    arn = encrypted(biospex.bucket)
    steps.Deployment(made, "commit", "docker", dry_run=True).deploy_stack("")
    assert f" BucketKeyArn={arn} " in capsys.readouterr().out


def test_a_bucket_that_locks_its_objects(biospex: Biospex) -> None:
    assert not list(preflight.object_lock(case(BUCKET=biospex.bucket)))
    locked = case(BUCKET=f"locked-{uuid4()}")
    client("s3").create_bucket(
        Bucket=locked.answers["BUCKET"],
        ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": REGION},
    )
    assert not list(preflight.object_lock(locked))
    client("s3").put_object_lock_configuration(
        Bucket=locked.answers["BUCKET"],
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}},
        },
    )
    only(preflight.object_lock(locked), "Object Lock")


def test_a_rule_that_archives_exports(biospex: Biospex) -> None:
    asked = case(BUCKET=biospex.bucket)
    for prefix in ("other/", "export/"):
        assert not list(preflight.archived_exports(asked))
        rule = {
            "ID": "archive",
            "Filter": {"Prefix": prefix},
            "Status": "Enabled",
            "Transitions": [{"Days": 30, "StorageClass": "GLACIER"}],
        }
        client("s3").put_bucket_lifecycle_configuration(
            Bucket=biospex.bucket, LifecycleConfiguration={"Rules": [rule]}
        )
    only(preflight.archived_exports(asked), "archives export/")


# -- the network


@pytest.fixture
def network() -> dict[str, Any]:
    """A VPC with two public subnets."""
    ec2 = client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
    ids = [
        ec2.create_subnet(
            VpcId=vpc, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=f"{REGION}{'ab'[number]}"
        )["Subnet"]["SubnetId"]
        for number in range(2)
    ]
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    ec2.create_route(
        RouteTableId=main_table(vpc), DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway
    )
    return {"VPC_ID": vpc, "SUBNET_IDS": ",".join(ids)}


def main_table(vpc: str) -> str:
    [table] = client("ec2").describe_route_tables(Filters=account.filters(vpc_id=vpc))[
        "RouteTables"
    ]
    return str(table["RouteTableId"])


def test_a_usable_network_has_no_findings(network: dict[str, Any]) -> None:
    asked = case(**network)
    for check in (preflight.vpc, preflight.subnets, preflight.public_addresses):
        assert not list(check(asked))
    assert account.first_subnets(network["VPC_ID"]) == network["SUBNET_IDS"]


def test_a_vpc_must_exist_and_have_dns_hostnames() -> None:
    assert "VPC_ID" in missing(VPC_ID="vpc-404")
    vpc = client("ec2").create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    only(preflight.vpc(case(VPC_ID=vpc)), "--enable-dns-hostnames")


def test_subnets_must_exist_in_the_vpc_and_in_different_zones(network: dict[str, Any]) -> None:
    missing = network | {"SUBNET_IDS": "subnet-404,subnet-405"}
    only(preflight.subnets(case(**missing)), "there is no subnet-404, subnet-405")
    only(preflight.subnets(case(**network | {"VPC_ID": "vpc-1"})), "is not in vpc-1")
    first, second = network["SUBNET_IDS"].split(",")
    twin = client("ec2").create_subnet(
        VpcId=network["VPC_ID"], CidrBlock="10.0.9.0/24", AvailabilityZone=f"{REGION}a"
    )["Subnet"]["SubnetId"]
    assert account.first_subnets(network["VPC_ID"]) == f"{max(first, twin)},{second}"
    twins = case(**network | {"SUBNET_IDS": f"{first},{twin}"})
    only(preflight.subnets(twins), "one availability zone")
    only(
        preflight.subnets(case(**network | {"SUBNET_IDS": f"{first},{first}"})),
        "one availability zone",
    )


def test_public_addresses_need_an_internet_gateway(network: dict[str, Any]) -> None:
    first = network | {"SUBNET_IDS": network["SUBNET_IDS"].split(",")[0]}
    private = case(**first, ASSIGN_PUBLIC_IP="DISABLED")
    only(preflight.public_addresses(private), "ASSIGN_PUBLIC_IP with ENABLED", "note")
    client("ec2").delete_route(
        RouteTableId=main_table(network["VPC_ID"]), DestinationCidrBlock="0.0.0.0/0"
    )
    assert not list(preflight.public_addresses(private))
    only(preflight.public_addresses(case(**first)), "ASSIGN_PUBLIC_IP with DISABLED", "note")


def test_a_mount_target_keeps_its_place() -> None:
    made = {"SubnetIds": "subnet-1,subnet-2"}
    for good in (
        "subnet-1,subnet-2",
        "subnet-1,subnet-2,subnet-3",
        "subnet-3,subnet-2",
        "subnet-1",
    ):
        assert not list(preflight.mount_targets(case(SUBNET_IDS=good, outputs=made)))
    moved = case(SUBNET_IDS="subnet-2", outputs=made)
    only(preflight.mount_targets(moved), "would change its place")
    assert not list(preflight.mount_targets(case(SUBNET_IDS="subnet-2")))


# -- queues


def queue(name: str, **attributes: str) -> str:
    client("sqs").create_queue(QueueName=name, Attributes=attributes)
    return account.queue(name)["QueueArn"]


def test_missing_queues_and_a_callback_queue_without_redrive_policy() -> None:
    missing = f"arn:aws:sqs:{REGION}:123456789012:missing"
    here: dict[str, Any] = {"AWS_REGION": REGION}
    only(preflight.queues(case(TRIGGER_QUEUE_ARN=missing, **here)), "no such queue")
    only(preflight.queues(case(UPDATES_QUEUE_ARN=missing, **here)), "no such queue")
    elsewhere = missing.replace(REGION, "eu-west-1")
    only(preflight.queues(case(TRIGGER_QUEUE_ARN=elsewhere, **here)), "no such queue")
    only(preflight.queues(case(UPDATES_QUEUE_ARN=elsewhere, **here)), "another region", "note")
    bare, dead = queue(f"bare-{uuid4()}"), queue(f"dead-{uuid4()}")
    only(preflight.queues(case(UPDATES_QUEUE_ARN=bare, **here)), "no redrive policy", "note")
    policy = json.dumps({"deadLetterTargetArn": dead, "maxReceiveCount": 3})
    redriven = queue(f"redriven-{uuid4()}", RedrivePolicy=policy)
    assert not list(preflight.queues(case(UPDATES_QUEUE_ARN=redriven, **here)))


OWN = {
    name: f"arn:aws:sqs:{REGION}:123456789012:dev-{suffix}"
    for name, suffix in preflight.STACK_QUEUES.items()
}


@pytest.mark.parametrize("answer", ["TRIGGER_QUEUE_ARN", "UPDATES_QUEUE_ARN"])
@pytest.mark.parametrize("resource", list(OWN))
def test_an_answer_that_names_the_stacks_own_queue_is_refused(answer: str, resource: str) -> None:
    made: dict[str, Any] = {"resources": frozenset(OWN)}
    asked = case(**{**made, answer: OWN[resource]})
    only(preflight.own_queues(asked), f"the stack's own queue ({resource})")
    other = case(**{**made, answer: OWN[resource].replace(":dev-", ":old-")})
    assert not list(preflight.own_queues(other))


def test_a_queue_older_than_the_stack_may_have_the_stacks_name_for_it() -> None:
    kept = case(TRIGGER_QUEUE_ARN=OWN["TriggerQueue"], UPDATES_QUEUE_ARN=OWN["UpdatesQueue"])
    assert not list(preflight.own_queues(kept))
    same = case(TRIGGER_QUEUE_ARN=OWN["TriggerQueue"], UPDATES_QUEUE_ARN=OWN["TriggerQueue"])
    only(preflight.own_queues(same), "is the trigger queue")


def test_things_that_an_earlier_stack_left_behind_are_reported() -> None:
    assert not list(preflight.left_behind(case("loc")))
    for suffix in preflight.STACK_QUEUES.values():
        queue(f"loc-{suffix}")
    client("logs").create_log_group(logGroupName="/ecs/loc-biospex-batch-creator")
    found = list(preflight.left_behind(case("loc")))
    assert [one.level for one in found] == ["stop"] * 7
    assert "answer TRIGGER_QUEUE_ARN with arn:aws:sqs:" in found[0].sentence
    assert "delete-queue" in found[1].sentence
    assert "delete-log-group" in found[6].sentence
    made = frozenset({*preflight.STACK_QUEUES, "LogGroup"})
    assert not list(preflight.left_behind(case("loc", resources=made)))
    remove_what_is_kept("loc")


def test_the_old_lambda_still_takes_messages(mapping: tuple[str, str]) -> None:
    arn, uuid = mapping
    assert not list(preflight.old_lambda(case()))
    of_stack = case(outputs={"TriggerQueueArn": arn})
    for asked in (of_stack, case(TRIGGER_QUEUE_ARN=arn)):
        only(preflight.old_lambda(asked), f"--uuid {uuid} --no-enabled")
    client("lambda").update_event_source_mapping(UUID=uuid, Enabled=False)
    assert not list(preflight.old_lambda(of_stack))


# -- keys, secret and topic


def missing(**changed: Any) -> set[str]:
    """The names of the answers whose things are missing."""
    found = preflight.missing_things(case(**changed))
    return {one.sentence.partition("=")[0] for one in found}


def test_a_missing_secret() -> None:
    secret = client("secretsmanager").create_secret(Name=f"p-{uuid4()}", SecretString="x")["ARN"]
    assert "PREFECT_SECRET_ARN" not in missing(PREFECT_SECRET_ARN=secret)
    assert "PREFECT_SECRET_ARN" in missing()


def test_a_look_up_that_aws_refuses_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied"}}, "DescribeVpcs")

    monkeypatch.setitem(preflight.LOOK_UPS, "VPC_ID", refuse)
    found = list(preflight.missing_things(case(BUCKET=f"missing-{uuid4()}")))
    assert [one.level for one in found] == ["stop", "note", "stop"]
    assert found[1].sentence.startswith("VPC_ID could not be checked: ")


def test_customers_keys_of_queues_and_secret_are_found() -> None:
    key = client("kms").create_key()["KeyMetadata"]
    keyed = queue(f"keyed-{uuid4()}", KmsMasterKeyId=key["KeyId"])
    assert account.key_of(keyed) == key["Arn"]
    assert account.key_of(queue(f"plain-{uuid4()}")) == ""
    assert account.key_of("") == ""
    secret = client("secretsmanager").create_secret(
        Name=f"k-{uuid4()}", SecretString="x", KmsKeyId=key["Arn"]
    )["ARN"]
    assert account.key_of(secret) == key["Arn"]


def test_a_topic_must_exist_here_and_have_a_subscription() -> None:
    sns = client("sns")
    topic = sns.create_topic(Name=f"operators-{uuid4()}")["TopicArn"]
    assert "ALARM_TOPIC_ARN" not in missing(ALARM_TOPIC_ARN=topic)
    for wrong in (f"{topic}-missing", topic.replace(REGION, "eu-west-1")):
        assert "ALARM_TOPIC_ARN" in missing(ALARM_TOPIC_ARN=wrong)
    only(preflight.topic(case("prod", ALARM_TOPIC_ARN=topic)), "nobody has subscribed")
    only(preflight.topic(case(ALARM_TOPIC_ARN=topic)), "nobody has subscribed", "note")
    sns.subscribe(TopicArn=topic, Protocol="email", Endpoint="x@example.org")
    assert not list(preflight.topic(case("prod", ALARM_TOPIC_ARN=topic)))


def test_a_topic_whose_key_cloudwatch_may_not_use() -> None:
    def topic(key: str) -> str:
        attributes = {"KmsMasterKeyId": key}
        made = client("sns").create_topic(Name=f"keyed-{uuid4()}", Attributes=attributes)
        arn = str(made["TopicArn"])
        client("sns").subscribe(TopicArn=arn, Protocol="email", Endpoint="x@example.org")
        return arn

    of_aws = case(ALARM_TOPIC_ARN=topic("alias/aws/sns"))
    only(preflight.topic(of_aws), "CloudWatch may not use its KMS key alias/aws/sns")
    key = client("kms").create_key()["KeyMetadata"]["KeyId"]
    asked = case(ALARM_TOPIC_ARN=topic(key))
    only(preflight.topic(asked), "CloudWatch may not use its KMS key")
    client("kms").put_key_policy(
        KeyId=key, PolicyName="default", Policy='{"Service": "cloudwatch.amazonaws.com"}'
    )
    assert not list(preflight.topic(asked))


# -- the account


@pytest.mark.parametrize(
    ("changed", "vcpu"),
    [
        ({}, 4 * 2 + 0.75),
        ({"FLOW_SETTINGS": "BATCH_SIZE=10 MAX_IN_FLIGHT=2"}, 2 * 2 + 0.75),
        ({"SHAPE": "single", "CPU": "512"}, 0.5),
    ],
)
def test_a_quota_below_the_needed_vcpu(
    changed: dict[str, Any], vcpu: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto has quotas of VPC only, so Fargate's is patched in."""
    only(preflight.vcpu_quota(case(**changed)), "could not be read", "note")
    quota = {"Value": 0.25}
    backend = "moto.servicequotas.models.ServiceQuotasBackend"
    monkeypatch.setattr(f"{backend}.get_service_quota", lambda *_, **__: quota)
    says = f"may run 0.25 vCPU of FARGATE at once, and the answers need {vcpu:g}:"
    only(preflight.vcpu_quota(case(**changed)), says)
    quota["Value"] = vcpu
    assert not list(preflight.vcpu_quota(case(**changed)))


def test_services_that_have_no_role_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    service = f"service-{uuid4()}.amazonaws.com"
    monkeypatch.setattr(preflight, "SERVICES", (service,))
    only(preflight.service_roles(case()), f"--aws-service-name {service}")
    client("iam").create_service_linked_role(AWSServiceName=service)
    assert not list(preflight.service_roles(case()))


def test_a_missing_stack_is_empty() -> None:
    assert account.Stack.named(f"missing-{uuid4()}") == account.Stack()


def test_only_a_missing_queue_has_no_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert account.queue(f"missing-{uuid4()}") == {}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(EndpointConnectionError):
        account.queue("missing")
