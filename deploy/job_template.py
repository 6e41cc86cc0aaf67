"""The base job template of the ECS work pool, made from what the stack put out.

    python -m deploy.job_template --image IMAGE OUTPUTS.json > template.json
    prefect work-pool create biospex-ecs --type ecs --base-job-template template.json --overwrite

OUTPUTS.json is what ``aws cloudformation describe-stacks --query 'Stacks[0].Outputs'`` prints, or
an object of output names and values; ``-`` reads it from standard input.

The template is prefect-aws's own with other defaults and a larger task definition, so it has
whatever the installed release has. What a person may want to change for one deployment stays a
variable; what belongs to the stack is written in.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect_aws.workers.ecs_worker import ECSWorker

EFS_PATH = "/efs/batch"
VOLUME = "efs"

STOP_TIMEOUT = 120
"""Seconds between SIGTERM and SIGKILL, the most that Fargate gives: time to abort uploads."""

# https://docs.aws.amazon.com/AmazonECS/latest/developerguide/fargate-task-storage.html
EPHEMERAL_STORAGE = range(21, 201)
"""GiB that can be asked for; without asking there are 20."""


class TemplateError(Exception):
    """Something that the template is made of is missing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the template; the exit status is 1 if it cannot be made."""
    options = _options(arguments)
    text = sys.stdin.read() if options.outputs == "-" else Path(options.outputs).read_text()
    try:
        template = job_template(
            outputs_of(text),
            options.image,
            cpu=options.cpu,
            memory=options.memory,
            ephemeral_storage=options.ephemeral_storage,
            capacity=options.capacity,
            env=dict(options.env),
        )
    except TemplateError as error:
        print(f"No job template: {error}", file=sys.stderr)
        return 1
    print(json.dumps(template, indent=2))
    return 0


def outputs_of(text: str) -> dict[str, str]:
    """The outputs of a stack by name, from either form of their JSON."""
    try:
        found = json.loads(text)
        if isinstance(found, list):
            found = {one["OutputKey"]: one["OutputValue"] for one in found}
        return {str(name): str(value) for name, value in found.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TemplateError("the stack's outputs are not JSON of the kind described") from error


def job_template(
    outputs: Mapping[str, str],
    image: str,
    *,
    cpu: int = 2048,
    memory: int = 4096,
    ephemeral_storage: int = 100,
    capacity: str = "FARGATE",
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The base job template for ``prefect work-pool create --base-job-template``.

    Args:
        outputs: of deploy/stack.yaml.
        cpu: units, 1024 to a virtual CPU.
        memory: MiB.
        ephemeral_storage: GiB, 21 to 200.
        capacity: FARGATE or FARGATE_SPOT.
        env: what the containers' environment has besides.

    Raises:
        TemplateError: if an output, or a part of prefect-aws's template, is not there.
    """
    template = ECSWorker.get_default_base_job_template()
    _set_defaults(
        template,
        {
            "image": image,
            "cpu": cpu,
            "memory": memory,
            "family": _output(outputs, "RepositoryUri").rpartition("/")[2],
            "cluster": _output(outputs, "ClusterArn"),
            "task_role_arn": _output(outputs, "TaskRoleArn"),
            "execution_role_arn": _output(outputs, "ExecutionRoleArn"),
            "vpc_id": _output(outputs, "VpcId"),
            "launch_type": capacity,
            "configure_cloudwatch_logs": True,
            "cloudwatch_logs_prefix": "biospex",
            "cloudwatch_logs_options": {
                "awslogs-group": _output(outputs, "LogGroupName"),
                "awslogs-create-group": "false",  # the stack has, with a retention
            },
            "env": _environment(outputs) | dict(env or {}),
        },
    )
    _widen_task_definition(template, outputs, ephemeral_storage)
    _set_network(template, outputs)
    return template


def _environment(outputs: Mapping[str, str]) -> dict[str, str | None]:
    return {
        "AWS_REGION": _output(outputs, "ClusterArn").split(":")[3],
        "TRIGGER_QUEUE_URL": _output(outputs, "TriggerQueueUrl"),
        "ALLOWED_BUCKETS": _output(outputs, "BucketName"),
        "ALLOWED_QUEUES": _output(outputs, "UpdatesQueueUrl"),
        "EFS_PATH": EFS_PATH,
        "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
        # A task that is told to stop, by Spot or a person, hands its run to the next one.
        "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
        # The worker gives its own settings on; its home is a path of another machine.
        "PREFECT_HOME": None,
    }


def _widen_task_definition(
    template: dict[str, Any], outputs: Mapping[str, str], ephemeral_storage: int
) -> None:
    """Add the disk, the EFS volume and what the container needs of both."""
    definition = _part(template, "job_configuration", "task_definition")
    container = _part(definition, "containerDefinitions", 0)
    _add_variable(
        template,
        "ephemeral_storage",
        {
            "title": "Ephemeral Storage",
            "description": "GiB of the task's own disk, on which archives are unpacked.",
            "type": "integer",
            "minimum": EPHEMERAL_STORAGE.start,
            "maximum": EPHEMERAL_STORAGE.stop - 1,
            "default": ephemeral_storage,
        },
    )
    definition["ephemeralStorage"] = {"sizeInGiB": "{{ ephemeral_storage }}"}
    definition["volumes"] = [
        {
            "name": VOLUME,
            "efsVolumeConfiguration": {
                "fileSystemId": _output(outputs, "FileSystemId"),
                # ECS would add it, and the worker no longer know its own definition again.
                "rootDirectory": "/",
                "transitEncryption": "ENABLED",
                "authorizationConfig": {
                    "accessPointId": _output(outputs, "AccessPointId"),
                    "iam": "ENABLED",
                },
            },
        }
    ]
    container["mountPoints"] = [
        {"sourceVolume": VOLUME, "containerPath": EFS_PATH, "readOnly": False}
    ]
    container["cpu"] = "{{ cpu }}"
    container["memory"] = "{{ memory }}"
    container["stopTimeout"] = STOP_TIMEOUT


def _set_network(template: dict[str, Any], outputs: Mapping[str, str]) -> None:
    """The stack's network in place of the variable for all of it; the public address stays one."""
    configuration = _part(template, "job_configuration")
    _part(configuration, "network_configuration")
    _part(template, "variables", "properties", "network_configuration")
    del template["variables"]["properties"]["network_configuration"]
    _add_variable(
        template,
        "assign_public_ip",
        {
            "title": "Assign Public IP",
            "description": "Needed in a public subnet to reach ECR and S3; nothing may come in.",
            "type": "string",
            "enum": ["ENABLED", "DISABLED"],
            "default": "ENABLED",
        },
    )
    configuration["network_configuration"] = {
        "subnets": _output(outputs, "SubnetIds").split(","),
        "securityGroups": [_output(outputs, "TaskSecurityGroupId")],
        "assignPublicIp": "{{ assign_public_ip }}",
    }


def _set_defaults(template: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    for name, value in defaults.items():
        variable = _part(template, "variables", "properties", name)
        if value not in variable.get("enum", [value]):
            raise TemplateError(f"{value} is none of {name}'s values: {variable['enum']}")
        variable["default"] = value


def _add_variable(template: dict[str, Any], name: str, schema: Mapping[str, Any]) -> None:
    variables = _part(template, "variables", "properties")
    if name in variables:
        raise TemplateError(f"prefect-aws {_release()} has a variable {name!r} of its own")
    variables[name] = dict(schema)


def _part(of: Any, *path: str | int) -> Any:
    """A part of the template that prefect-aws made."""
    for step in path:
        try:
            of = of[step]
        except (KeyError, IndexError, TypeError) as error:
            where = " / ".join(map(str, path))
            raise TemplateError(
                f"the template of prefect-aws {_release()} has no {where} any more"
            ) from error
    return of


def _release() -> str:
    return version("prefect-aws")


def _output(outputs: Mapping[str, str], name: str) -> str:
    try:
        return outputs[name]
    except KeyError:
        raise TemplateError(f"the stack has no output {name}") from None


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.job_template",
        description="Print the base job template of the ECS work pool.",
    )
    parser.add_argument("outputs", metavar="OUTPUTS.json", help="the stack's outputs, - for stdin")
    parser.add_argument("--image", required=True, help="the containers' image")
    parser.add_argument("--cpu", type=int, default=2048, help="units, 1024 to a CPU (2048)")
    parser.add_argument("--memory", type=int, default=4096, help="MiB (4096)")
    parser.add_argument(
        "--ephemeral-storage",
        type=int,
        default=100,
        choices=EPHEMERAL_STORAGE,
        metavar="GIB",
        help="of the task's own disk, 21 to 200 (100)",
    )
    parser.add_argument("--capacity", default="FARGATE", choices=["FARGATE", "FARGATE_SPOT"])
    parser.add_argument(
        "--env",
        type=_name_and_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one more variable of the containers' environment; may be repeated",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
