"""Look-ups in the AWS account; nothing here changes it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.exceptions import ClientError


def client(service: Any) -> Any:
    return boto3.client(service)


def code_of(error: ClientError) -> str:
    return str(error.response["Error"]["Code"]).rpartition(".")[2]


def found(call: Callable[..., Any], *absent: str, **arguments: Any) -> Any:
    """The answer to a call, or None if AWS answers with a code that means that nothing is there."""
    try:
        return call(**arguments)
    except ClientError as error:
        if code_of(error) not in absent:
            raise
        return None


def is_region(name: str) -> bool:
    """Whether this boto3 knows a region of AWS."""
    session = boto3.Session()
    partitions = session.get_available_partitions()
    return any(name in session.get_available_regions("ecs", one) for one in partitions)


@dataclass(frozen=True)
class Stack:
    """A stack as CloudFormation has it; all of it is empty if there is none.

    Attributes:
        resources: the names in the template of the existing resources.
    """

    parameters: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    resources: frozenset[str] = frozenset()

    @classmethod
    def named(cls, name: str) -> "Stack":
        cloudformation = client("cloudformation")
        answer = found(cloudformation.describe_stacks, "ValidationError", StackName=name)
        if answer is None:
            return cls()
        [made] = answer["Stacks"]
        pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=name)
        resources = [one for page in pages for one in page["StackResourceSummaries"]]
        gone = ("DELETE_COMPLETE", "DELETE_SKIPPED")
        return cls(
            {one["ParameterKey"]: one["ParameterValue"] for one in made.get("Parameters", ())},
            {one["OutputKey"]: one["OutputValue"] for one in made.get("Outputs", ())},
            frozenset(r["LogicalResourceId"] for r in resources if r["ResourceStatus"] not in gone),
        )


# -- queues


def queue(name: str) -> dict[str, str]:
    """All attributes of a queue of this account and region, and its QueueUrl; empty if none.

    Args:
        name: or its ARN.
    """
    codes = ("NonExistentQueue", "QueueDoesNotExist")  # queryCompatible: the older, or the newer
    sqs = client("sqs")
    answer = found(sqs.get_queue_url, *codes, QueueName=name.rpartition(":")[2])
    if not answer:
        return {}
    url = str(answer["QueueUrl"])
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    return {"QueueUrl": url, **attributes}


def lambda_mappings(queue_arn: str) -> list[Any]:
    """The event source mappings of a queue that are not Disabled."""
    paginator = client("lambda").get_paginator("list_event_source_mappings")
    pages = paginator.paginate(EventSourceArn=queue_arn)
    mappings = [one for page in pages for one in page["EventSourceMappings"]]
    return [one for one in mappings if one["State"] != "Disabled"]


# -- the bucket and KMS keys


def bucket_key(bucket: str) -> str:
    """The ARN of the customer's KMS key that a bucket encrypts with; empty if there is none."""
    look = client("s3").get_bucket_encryption
    answer = found(look, "ServerSideEncryptionConfigurationNotFoundError", Bucket=bucket)
    for rule in answer["ServerSideEncryptionConfiguration"]["Rules"] if answer else ():
        default = rule.get("ApplyServerSideEncryptionByDefault", {})
        if default.get("SSEAlgorithm", "").startswith("aws:kms"):
            return customers_key(default.get("KMSMasterKeyID", ""))
    return ""


def lifecycle_rules(bucket: str) -> list[Any]:
    look = client("s3").get_bucket_lifecycle_configuration
    answer = found(look, "NoSuchLifecycleConfiguration", Bucket=bucket)
    return list(answer["Rules"]) if answer else []


def customers_key(key: str) -> str:
    """The ARN of a KMS key that a customer manages; empty for a key of AWS, or none."""
    if not key:
        return ""
    try:
        described = client("kms").describe_key(KeyId=key)["KeyMetadata"]
    except ClientError:
        if ":key/" not in key:
            raise
        return key  # of another account, perhaps, which does not let this one look
    return str(described["Arn"]) if described["KeyManager"] == "CUSTOMER" else ""


def key_of(arn: str) -> str:
    """The customer's KMS key of a queue of this region or of a secret; empty if there is none."""
    if ":secretsmanager:" in arn:
        secret = client("secretsmanager").describe_secret(SecretId=arn)
        return customers_key(secret.get("KmsKeyId", ""))
    is_here = f":{client('sqs').meta.region_name}:" in arn
    return customers_key(queue(arn).get("KmsMasterKeyId", "") if is_here else "")


def allows_cloudwatch(key: str) -> bool:
    """Whether the policy of a key names CloudWatch; that of AWS's own key for SNS does not."""
    if key.endswith("alias/aws/sns") or not (arn := customers_key(key)):
        return False
    policy = client("kms").get_key_policy(KeyId=arn, PolicyName="default")["Policy"]
    return "cloudwatch.amazonaws.com" in policy


# -- the network


def filters(**values: str) -> list[dict[str, Any]]:
    """EC2's filters by name, with underscores in place of hyphens."""
    return [{"Name": name.replace("_", "-"), "Values": [one]} for name, one in values.items()]


def default_vpc() -> str:
    vpcs = client("ec2").describe_vpcs(Filters=filters(is_default="true"))["Vpcs"]
    return str(vpcs[0]["VpcId"]) if vpcs else ""


def first_subnets(vpc_id: str) -> str:
    """A subnet of each of the first three zones of a VPC, separated by commas."""
    subnets = client("ec2").describe_subnets(Filters=filters(vpc_id=vpc_id))["Subnets"]
    # AWS keeps no order, and a later run has to offer the same.
    by_zone = dict(sorted((one["AvailabilityZone"], one["SubnetId"]) for one in subnets))
    return ",".join([*by_zone.values()][:3])


def leads_to_internet_gateway(subnet: str, vpc_id: str) -> bool:
    """Whether the route table of a subnet, its own or its VPC's, leads to an internet gateway."""
    look = client("ec2").describe_route_tables
    own = filters(**{"association.subnet-id": subnet})
    main = filters(**{"vpc-id": vpc_id, "association.main": "true"})
    tables = look(Filters=own)["RouteTables"] or look(Filters=main)["RouteTables"]
    routes = [route for table in tables for route in table["Routes"]]
    gateways = {r.get("GatewayId") for r in routes if r.get("DestinationCidrBlock") == "0.0.0.0/0"}
    return any(str(gateway).startswith("igw-") for gateway in gateways)
