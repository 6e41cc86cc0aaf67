"""deploy/stack.yaml in moto's CloudFormation, and what its roles may do."""

import ast
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from deploy.preflight import STACK_QUEUES
from devtools.services import REGION
from tests.helpers.biospex import client

ROOT = Path(__file__).parent.parent.parent
TEMPLATE = ROOT / "deploy" / "stack.yaml"
ACCOUNT = "123456789012"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/loc-biospex-batch-creator:1"


NAMES = (
    "RepositoryUri SplitterRoleArn ListenerRoleArn ExecutionRoleArn VpcId TaskSecurityGroupId "
    "LogGroupName FileSystemId AccessPointId"
)
OUTPUTS = {name: f"the {name}" for name in NAMES.split()} | {
    "Environment": "dev",
    "ClusterArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/dev",
    "TriggerQueueUrl": "https://sqs.us-east-2.amazonaws.com/1/dev-batch-trigger",
    "UpdatesQueueUrl": "https://sqs.us-east-2.amazonaws.com/1/dev-batch-update",
    "BucketName": "biospex-dev",
    "SubnetIds": "subnet-1,subnet-2",
    "AssignPublicIp": "ENABLED",
}
"""Outputs of a stack, for the job template."""


class Stack:
    """A stack in moto."""

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
    chosen = {
        "Environment": environment,
        "BucketName": f"biospex-{environment}",
        "VpcId": vpc,
        "SubnetIds": ",".join(made),
        "PrefectApiUrl": "https://prefect.example.org/api",
        **parameters,
    }
    client("cloudformation").create_stack(**_request(name, chosen))
    try:
        yield Stack(name, chosen)
    finally:
        client("cloudformation").delete_stack(StackName=name)
        remove_what_is_kept(environment)


def remove_what_is_kept(environment: str) -> None:
    """Deletes the retained queues and log group, as docs/deploying.md, Removing it, says."""
    for suffix in STACK_QUEUES.values():
        url = f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{environment}-{suffix}"
        with suppress(client("sqs").exceptions.QueueDoesNotExist):
            client("sqs").delete_queue(QueueUrl=url)
    group = f"/ecs/{environment}-biospex-batch-creator"
    with suppress(client("logs").exceptions.ResourceNotFoundException):
        client("logs").delete_log_group(logGroupName=group)


def _request(name: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    return {
        "StackName": name,
        "TemplateBody": TEMPLATE.read_text(),
        "Parameters": [
            {"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()
        ],
        "Capabilities": ["CAPABILITY_IAM"],
    }


def worker_containers(stack: Stack) -> Any:
    """The container definitions of the service's task in ECS."""
    ecs = client("ecs")
    [service] = ecs.describe_services(cluster=stack["ClusterArn"], services=["loc-biospex-worker"])[
        "services"
    ]
    assert service["desiredCount"] == 1
    defined = ecs.describe_task_definition(taskDefinition=service["taskDefinition"])
    return defined["taskDefinition"]["containerDefinitions"]


@cache
def template() -> Any:
    """The template as data."""
    from cfnlint.decode import cfn_yaml  # type: ignore[import-untyped] # takes a second

    return cfn_yaml.load(str(TEMPLATE))


def properties(resource: str) -> Any:
    """A resource's properties in the template; moto omits some of them."""
    return template()["Resources"][resource]["Properties"]


# -- what the roles may do


def grants(role_arn: str) -> list[dict[str, Any]]:
    """The statements of a role's policies."""
    iam, role = client("iam"), role_arn.rpartition("/")[2]
    assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    statements = []
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        # From CloudFormation moto keeps a document as Python writes it, not as JSON.
        policy = ast.literal_eval(document) if isinstance(document, str) else document
        # moto leaves None where the template has AWS::NoValue.
        statements += [statement for statement in policy["Statement"] if statement]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    return statements


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


ACTIONS = {
    "s3:HeadObject": {"s3:GetObject", "s3:ListBucket"},
    "s3:ListMultipartUploads": {"s3:ListBucketMultipartUploads"},
    "s3:CreateMultipartUpload": {"s3:PutObject"},
    "s3:UploadPart": {"s3:PutObject"},
    "s3:UploadPartCopy": {"s3:GetObject", "s3:PutObject"},
    "s3:CompleteMultipartUpload": {"s3:PutObject"},
    "ecs:RunTask": {"ecs:RunTask", "ecs:TagResource", "iam:PassRole"},
    "ecs:RegisterTaskDefinition": {"ecs:RegisterTaskDefinition", "iam:PassRole"},
}
"""The rights of calls that need others than the action of their name, after the service
authorization reference: https://docs.aws.amazon.com/service-authorization/latest/reference/"""

SELDOM = {
    "WorkerRoleArn": {"ecs:StopTask", "logs:GetLogEvents", "sqs:ChangeMessageVisibility"},
    "ListenerRoleArn": {
        "sqs:SendMessage",
        "sqs:ChangeMessageVisibility",
        "sqs:GetQueueAttributes",
        "ecs:StopTask",
    },
    "SplitterRoleArn": {
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
        "sqs:GetQueueAttributes",
        "elasticfilesystem:ClientMount",
        "elasticfilesystem:ClientWrite",
    },
}
"""Rights that a good export does not use: for cancelling, crashes, long waits, damage and EFS."""


CALLED = {"pools": {"ec2", "ecs", "s3", "sqs"}, "single": {"s3", "sqs"}}
"""The services that the processes call: docs/deploying.md lists their endpoints."""
