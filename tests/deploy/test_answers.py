"""deploy/answers.py: each wrong answer has a finding, and good answers have none."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import boto3
import pytest

from blocks.saved import REGION
from deploy import answers, preflight
from deploy.answers import Answers
from deploy.preflight import Finding
from tests.deploy.test_stack import remove_what_is_kept

GOOD: dict[str, Any] = {
    "SHAPE": "pools",
    "AWS_REGION": "us-east-2",
    "BUCKET": "biospex-dev",
    "BUCKET_KEY_ARN": "",
    "VPC_ID": "vpc-0a1b",
    "SUBNET_IDS": "subnet-1,subnet-2",
    "ASSIGN_PUBLIC_IP": "ENABLED",
    "TRIGGER_QUEUE_ARN": "",
    "UPDATES_QUEUE_ARN": "arn:aws:sqs:us-east-2:123456789012:dev-batch-update",
    "ALARM_TOPIC_ARN": "arn:aws:sns:us-east-2:123456789012:operators",
    "LOG_RETENTION_DAYS": "90",
    "PREFECT_API_URL": "https://prefect.example.org/api",
    "PREFECT_API_KEY_SECRET_ARN": "",
    "PREFECT_API_AUTH_STRING_SECRET_ARN": (
        "arn:aws:secretsmanager:us-east-2:123456789012:secret:biospex-prefect-AbCdEf"
    ),
    "NOTIFICATION_BLOCK": "slack-webhook/operators",
    "CPU": "2048",
    "MEMORY": "4096",
    "EPHEMERAL_STORAGE": "100",
    "CAPACITY": "FARGATE",
    "FLOW_SETTINGS": "BATCH_SIZE=1000 PREFECT_LOGGING_LEVEL=DEBUG",
    "LIFECYCLE_RULES": "no",
}

CLOUD = "https://api.prefect.cloud/api/accounts/1/workspaces/2"
SECRET = GOOD["PREFECT_API_AUTH_STRING_SECRET_ARN"]


def sentences(environment: str = "dev", *, open_api: bool = False, **changed: str) -> list[str]:
    found = answers.problems({**GOOD, **changed}, environment, open_api=open_api)
    return [f"{one.level}: {one.sentence}" for one in found]


def test_good_answers_have_no_findings() -> None:
    assert sentences() == []
    assert sentences("prod") == []
    key: dict[str, Any] = {
        "PREFECT_API_KEY_SECRET_ARN": SECRET,
        "PREFECT_API_AUTH_STRING_SECRET_ARN": "",
    }
    assert sentences(PREFECT_API_URL=CLOUD, **key) == []
    assert sentences(PREFECT_API_AUTH_STRING_SECRET_ARN="", open_api=True) == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SHAPE", "double", "'pools' or 'single'"),
        ("AWS_REGION", "us-east-22", "the nearest is us-east-2."),
        ("AWS_REGION", "", "no such region"),
        ("BUCKET", "Biospex_App", "small letters"),
        ("BUCKET", "", "small letters"),
        ("BUCKET_KEY_ARN", "alias/biospex", "ARN of the key"),
        ("BUCKET_KEY_ARN", "arn:aws:kms:us-east-2:123456789012:alias/x", "ARN of the key"),
        ("VPC_ID", "", "id of a VPC"),
        ("VPC_ID", "my-vpc", "id of a VPC"),
        ("SUBNET_IDS", "", "ids like subnet-"),
        ("SUBNET_IDS", "subnet-1, subnet-2", "without blanks"),
        ("SUBNET_IDS", "subnet-1,subnet-2,subnet-3,subnet-4", "at most three"),
        ("SUBNET_IDS", "subnet-1,subnet-1", "named twice"),
        ("ASSIGN_PUBLIC_IP", "MAYBE", "'ENABLED' or 'DISABLED'"),
        ("TRIGGER_QUEUE_ARN", "https://sqs.us-east-2.amazonaws.com/1/q", "ARN of a standard queue"),
        (
            "TRIGGER_QUEUE_ARN",
            "arn:aws:sqs:us-east-2:123456789012:t.fifo",
            "ARN of a standard queue",
        ),
        ("UPDATES_QUEUE_ARN", "arn:aws:sns:us-east-2:123456789012:u", "ARN of a standard queue"),
        ("ALARM_TOPIC_ARN", "operators", "ARN of a standard topic"),
        ("LOG_RETENTION_DAYS", "91", "one of: 1, 3, 5"),
        ("LOG_RETENTION_DAYS", "three months", "whole number"),
        ("PREFECT_API_URL", "", "docs/where-prefect-runs.md"),
        ("PREFECT_API_URL", "prefect.example.org/api", "like https://HOST/api"),
        ("PREFECT_API_URL", "http://prefect.example.org/api", "use https"),
        ("PREFECT_API_URL", "https://a:b@prefect.example.org/api", "the password out"),
        ("PREFECT_API_URL", "https://prefect.example.org", "ends in /api"),
        ("PREFECT_API_KEY_SECRET_ARN", "pnu_123", "a secret's ARN"),
        ("PREFECT_API_KEY_SECRET_ARN", SECRET, "leave one of the two empty"),
        ("PREFECT_API_AUTH_STRING_SECRET_ARN", "user:password", "a secret's ARN"),
        ("PREFECT_API_AUTH_STRING_SECRET_ARN", "", "sign in with a secret"),
        ("PREFECT_API_URL", CLOUD, "Prefect Cloud takes a key"),
        ("NOTIFICATION_BLOCK", "operators", "type and name"),
        ("CPU", "2000", "CPU units of: 256"),
        ("CPU", "two", "whole number"),
        ("MEMORY", "2048", "Fargate gives 2048 CPU units 4096 to 16384 MiB"),
        ("MEMORY", "4 GB", "whole number"),
        ("MEMORY", "100", "greater than or equal to 512"),
        ("EPHEMERAL_STORAGE", "20", "greater than or equal to 21"),
        ("EPHEMERAL_STORAGE", "201", "less than or equal to 200"),
        ("CAPACITY", "SPOT", "'FARGATE' or 'FARGATE_SPOT'"),
        ("FLOW_SETTINGS", "BATCHSIZE=10", "do you mean BATCH_SIZE?"),
        ("FLOW_SETTINGS", "BATCH_SIZE=abc", "valid integer"),
        ("FLOW_SETTINGS", "BATCH_SIZE", "not NAME=VALUE"),
        ("FLOW_SETTINGS", "AWS_SECRET_ACCESS_KEY=x", "no setting"),
        ("LIFECYCLE_RULES", "maybe", "yes or no"),
    ],
)
def test_a_wrong_answer_has_one_sentence_that_names_it(name: str, value: Any, says: str) -> None:
    [sentence] = sentences(**{name: value})
    assert sentence.startswith("stop: ")
    assert name in sentence or (name == "PREFECT_API_URL" and "takes a key" in sentence)
    assert says in sentence
    assert len(sentence.splitlines()) == 1


def test_production_needs_a_topic() -> None:
    assert sentences("dev", ALARM_TOPIC_ARN="") == []
    [sentence] = sentences("prod", ALARM_TOPIC_ARN="")
    assert "prod needs a topic that somebody reads" in sentence


WRONG: dict[str, Any] = {
    "BUCKET_KEY_ARN": "alias/biospex",
    "VPC_ID": "my-vpc",
    "SUBNET_IDS": "a,b,c,d",
    "ASSIGN_PUBLIC_IP": "MAYBE",
    "TRIGGER_QUEUE_ARN": "t.fifo",
    "UPDATES_QUEUE_ARN": "u",
    "ALARM_TOPIC_ARN": "operators",
    "LOG_RETENTION_DAYS": "91",
    "PREFECT_API_KEY_SECRET_ARN": "pnu_123",
    "PREFECT_API_AUTH_STRING_SECRET_ARN": "user:password",
    "NOTIFICATION_BLOCK": "operators",
    "CPU": "2000",
    "MEMORY": "4 GB",
    "EPHEMERAL_STORAGE": "20",
    "CAPACITY": "SPOT",
    "FLOW_SETTINGS": "BATCHSIZE=10 BATCH_SIZE=abc BATCH_SIZE",
    "LIFECYCLE_RULES": "maybe",
    "BUCKET": "Biospex_App",
}
"""Twenty, as three are in FLOW_SETTINGS."""


def test_twenty_wrong_answers_have_twenty_sentences() -> None:
    assert len(sentences(**WRONG)) == 20


# -- what answers name, in an account


def client(service: Any) -> Any:
    return boto3.client(service, region_name=REGION)


@pytest.fixture
def network(aws: str) -> dict[str, str]:
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
    filters = [{"Name": "vpc-id", "Values": [vpc]}]
    [table] = client("ec2").describe_route_tables(Filters=filters)["RouteTables"]
    return str(table["RouteTableId"])


def given(**changed: str) -> Answers:
    parsed, wrong = answers.parse(
        {**GOOD, "UPDATES_QUEUE_ARN": "", "ALARM_TOPIC_ARN": ""} | changed
    )
    assert not wrong
    return parsed


def only(found: Iterator[Finding], text: str, level: str = "stop") -> None:
    [finding] = found
    assert finding.level == level
    assert text in finding.sentence
    assert len(finding.sentence.splitlines()) == 1


def test_a_usable_network_has_no_findings(network: dict[str, str]) -> None:
    assert not list(answers.vpc(given(**network)))
    assert not list(answers.subnets(given(**network)))


def test_a_vpc_must_exist_and_have_dns_hostnames(network: dict[str, str]) -> None:
    only(answers.vpc(given(VPC_ID="vpc-404")), "no such VPC")
    vpc = client("ec2").create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    only(answers.vpc(given(VPC_ID=vpc)), "--enable-dns-hostnames")


def test_subnets_must_exist_in_the_vpc_and_in_different_zones(network: dict[str, str]) -> None:
    ec2 = client("ec2")
    missing = network | {"SUBNET_IDS": "subnet-404,subnet-405"}
    only(answers.subnets(given(**missing)), "there is no subnet-404, subnet-405")
    only(answers.subnets(given(**network | {"VPC_ID": "vpc-1"})), "is not in vpc-1")
    first = network["SUBNET_IDS"].split(",")[0]
    twin = ec2.create_subnet(
        VpcId=network["VPC_ID"], CidrBlock="10.0.9.0/24", AvailabilityZone=f"{REGION}a"
    )["Subnet"]["SubnetId"]
    only(answers.subnets(given(**network | {"SUBNET_IDS": f"{first},{twin}"})), "one availability")


def test_subnets_without_a_route_out(network: dict[str, str]) -> None:
    ec2, vpc = client("ec2"), network["VPC_ID"]
    first = network["SUBNET_IDS"].split(",")[0]
    one = network | {"SUBNET_IDS": first}
    private = one | {"ASSIGN_PUBLIC_IP": "DISABLED"}
    only(answers.subnets(given(**private)), "needs public addresses", "note")
    ec2.delete_route(RouteTableId=main_table(vpc), DestinationCidrBlock="0.0.0.0/0")
    only(answers.subnets(given(**one)), "no route to an internet gateway", "note")
    only(answers.subnets(given(**private)), "no endpoints for ecr.api, ecr.dkr, logs", "note")
    made = {
        service: ec2.create_vpc_endpoint(
            VpcId=vpc,
            ServiceName=f"com.amazonaws.{REGION}.{service}",
            VpcEndpointType="Gateway" if service == "s3" else "Interface",
        )["VpcEndpoint"]["VpcEndpointId"]
        for service in answers.ENDPOINTS["pools"]
    }
    only(answers.subnets(given(**private)), "no endpoints for s3: add a NAT", "note")
    ec2.delete_vpc_endpoints(VpcEndpointIds=[made["s3"], made["ecs"], made["ec2"]])
    ec2.create_vpc_endpoint(
        VpcId=vpc,
        ServiceName=f"com.amazonaws.{REGION}.s3",
        VpcEndpointType="Gateway",
        RouteTableIds=[main_table(vpc)],
    )
    only(answers.subnets(given(**private)), "no endpoints for ec2, ecs: add a NAT", "note")
    assert not list(answers.subnets(given(**private, SHAPE="single")))


@pytest.mark.parametrize(
    ("changed", "vcpu"),
    [
        ({}, 4 * 2 + 0.75),
        ({"FLOW_SETTINGS": "BATCH_SIZE=10 MAX_IN_FLIGHT=2"}, 2 * 2 + 0.75),
        ({"SHAPE": "single", "CPU": "512"}, 0.5),
    ],
)
def test_the_vcpu_that_the_answers_need(changed: dict[str, str], vcpu: float) -> None:
    assert answers.plan_of(given(**changed)).vcpu == vcpu


def test_a_mount_target_keeps_its_place() -> None:
    assert preflight.in_order("", "subnet-2,subnet-1") == "subnet-2,subnet-1"
    assert preflight.in_order("subnet-1,subnet-2", "subnet-3,subnet-2,subnet-1") == (
        "subnet-1,subnet-2,subnet-3"
    )
    made = "subnet-1,subnet-2"
    assert preflight.in_order(made, "subnet-2,subnet-3") == "subnet-3,subnet-2"
    assert preflight.in_order(made, "subnet-2") == "subnet-2"
    for good in (
        "subnet-1,subnet-2",
        "subnet-1,subnet-2,subnet-3",
        "subnet-3,subnet-2",
        "subnet-1",
    ):
        assert not list(answers.mount_targets(given(SUBNET_IDS=good), made))
    only(answers.mount_targets(given(SUBNET_IDS="subnet-2"), made), "would change its place")
    assert not list(answers.mount_targets(given(SUBNET_IDS="subnet-2"), ""))


def queue(name: str, **attributes: str) -> str:
    client("sqs").create_queue(QueueName=name, Attributes=attributes)
    return preflight.queue_arn(name)


@pytest.mark.usefixtures("aws")
def test_missing_queues_and_a_callback_queue_without_redrive_policy() -> None:
    missing = f"arn:aws:sqs:{REGION}:123456789012:missing"
    only(answers.queues(given(TRIGGER_QUEUE_ARN=missing)), "no such queue")
    only(answers.queues(given(UPDATES_QUEUE_ARN=missing)), "no such queue")
    elsewhere = missing.replace(REGION, "eu-west-1")
    only(answers.queues(given(TRIGGER_QUEUE_ARN=elsewhere)), "no such queue")
    bare, dead = queue(f"bare-{uuid4()}"), queue(f"dead-{uuid4()}")
    only(answers.queues(given(UPDATES_QUEUE_ARN=bare)), "no redrive policy", "note")
    policy = json.dumps({"deadLetterTargetArn": dead, "maxReceiveCount": 3})
    redriven = queue(f"redriven-{uuid4()}", RedrivePolicy=policy)
    assert not list(answers.queues(given(UPDATES_QUEUE_ARN=redriven)))


OWN = {
    name: f"arn:aws:sqs:{REGION}:123456789012:dev-{suffix}"
    for name, suffix in answers.STACK_QUEUES.items()
}


@pytest.mark.parametrize("answer", ["TRIGGER_QUEUE_ARN", "UPDATES_QUEUE_ARN"])
@pytest.mark.parametrize("resource", list(OWN))
def test_an_answer_that_names_the_stacks_own_queue_is_refused(answer: str, resource: str) -> None:
    asked = given(**{answer: OWN[resource]})
    only(answers.own_queues(asked, "dev", OWN), f"the stack's own queue ({resource})")
    other = given(**{answer: OWN[resource].replace(":dev-", ":old-")})
    assert not list(answers.own_queues(other, "dev", OWN))


def test_a_queue_older_than_the_stack_may_have_the_stacks_name_for_it() -> None:
    kept = given(TRIGGER_QUEUE_ARN=OWN["TriggerQueue"], UPDATES_QUEUE_ARN=OWN["UpdatesQueue"])
    assert not list(answers.own_queues(kept, "dev", {}))
    same = given(TRIGGER_QUEUE_ARN=OWN["TriggerQueue"], UPDATES_QUEUE_ARN=OWN["TriggerQueue"])
    only(answers.own_queues(same, "dev", {}), "is the trigger queue")


@pytest.mark.usefixtures("aws")
def test_resources_that_an_earlier_stack_left_behind_are_reported() -> None:
    assert not list(answers.left_behind(given(), "loc", {}))
    for suffix in answers.STACK_QUEUES.values():
        queue(f"loc-{suffix}")
    client("logs").create_log_group(logGroupName="/ecs/loc-biospex-batch-creator")
    found = list(answers.left_behind(given(), "loc", {}))
    assert [one.level for one in found] == ["stop"] * 7
    assert "answer with arn:aws:sqs:" in found[0].sentence
    assert "delete-queue" in found[1].sentence
    assert "delete-log-group" in found[6].sentence
    made = {**dict.fromkeys(answers.STACK_QUEUES, "x"), "LogGroup": "x"}
    assert not list(answers.left_behind(given(), "loc", made))
    remove_what_is_kept("loc")


@pytest.mark.usefixtures("aws")
def test_a_topic_must_exist_here_and_have_a_subscription() -> None:
    sns = client("sns")
    topic = sns.create_topic(Name=f"operators-{uuid4()}")["TopicArn"]
    only(answers.topic(given(ALARM_TOPIC_ARN=f"{topic}-missing"), "dev"), "no such topic")
    elsewhere = topic.replace(REGION, "eu-west-1")
    only(answers.topic(given(ALARM_TOPIC_ARN=elsewhere), "dev"), "its own region")
    only(answers.topic(given(ALARM_TOPIC_ARN=topic), "prod"), "nobody has subscribed")
    only(answers.topic(given(ALARM_TOPIC_ARN=topic), "dev"), "nobody has subscribed", "note")
    sns.subscribe(TopicArn=topic, Protocol="email", Endpoint="x@example.org")
    assert not list(answers.topic(given(ALARM_TOPIC_ARN=topic), "prod"))


@pytest.mark.usefixtures("aws")
def test_a_topic_whose_key_cloudwatch_may_not_use() -> None:
    def topic(key: str) -> str:
        attributes = {"KmsMasterKeyId": key}
        made = client("sns").create_topic(Name=f"keyed-{uuid4()}", Attributes=attributes)
        arn = str(made["TopicArn"])
        client("sns").subscribe(TopicArn=arn, Protocol="email", Endpoint="x@example.org")
        return arn

    only(answers.topic(given(ALARM_TOPIC_ARN=topic("alias/aws/sns")), "dev"), "alias/aws/sns")
    key = client("kms").create_key()["KeyMetadata"]["KeyId"]
    asked = given(ALARM_TOPIC_ARN=topic(key))
    only(answers.topic(asked, "dev"), "does not let cloudwatch.amazonaws.com")
    client("kms").put_key_policy(
        KeyId=key, PolicyName="default", Policy='{"Service": "cloudwatch.amazonaws.com"}'
    )
    assert not list(answers.topic(asked, "dev"))


@pytest.mark.usefixtures("aws")
def test_a_missing_secret_and_a_missing_key() -> None:
    only(answers.secret_is_there(given()), "no such secret")
    made = client("secretsmanager").create_secret(Name=f"p-{uuid4()}", SecretString="x")["ARN"]
    good = given(PREFECT_API_AUTH_STRING_SECRET_ARN=made)
    assert not list(answers.secret_is_there(good))
    key = client("kms").create_key()["KeyMetadata"]
    assert not list(answers.bucket_key_is_there(given(BUCKET_KEY_ARN=key["Arn"])))
    missing = key["Arn"].replace(key["KeyId"], str(uuid4()))
    only(answers.bucket_key_is_there(given(BUCKET_KEY_ARN=missing)), "no such key")
    client("kms").disable_key(KeyId=key["KeyId"])
    only(answers.bucket_key_is_there(given(BUCKET_KEY_ARN=key["Arn"])), "is Disabled")


@pytest.mark.usefixtures("aws")
def test_customers_keys_of_queues_and_secret_are_found() -> None:
    key = client("kms").create_key()["KeyMetadata"]
    keyed = queue(f"keyed-{uuid4()}", KmsMasterKeyId=key["KeyId"])
    assert preflight.key_of(keyed) == key["Arn"]
    assert preflight.key_of(queue(f"plain-{uuid4()}")) == ""
    secret = client("secretsmanager").create_secret(
        Name=f"k-{uuid4()}", SecretString="x", KmsKeyId=key["Arn"]
    )["ARN"]
    assert preflight.key_of(secret) == key["Arn"]
    asked = given(TRIGGER_QUEUE_ARN=keyed, PREFECT_API_AUTH_STRING_SECRET_ARN=secret)
    assert not list(answers.key_policies(asked))
    client("kms").put_key_policy(KeyId=key["KeyId"], PolicyName="default", Policy="{}")
    found = list(answers.key_policies(asked))
    assert [one.level for one in found] == ["note", "note"]
    assert "ListenerRoleArn" in found[0].sentence
    assert "ExecutionRoleArn" in found[1].sentence


@pytest.mark.usefixtures("aws")
def test_a_missing_stack_has_no_resources() -> None:
    assert answers.resources_of(f"missing-{uuid4()}") == {}
