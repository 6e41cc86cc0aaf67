"""The base job template of an ECS work pool, made from the stack's outputs.

    python -m deploy.job_template --pool splitter --image IMAGE OUTPUTS.json > template.json
    prefect work-pool create biospex-ecs --type ecs --base-job-template template.json --overwrite

OUTPUTS.json is the output of ``aws cloudformation describe-stacks --query 'Stacks[0].Outputs'``, or
an object of output names and values; ``-`` reads it from standard input.

There are two pools, since listener and splitter have different roles: the splitter's has no right
to the trigger queue, the listener's none to the bucket.

The template is prefect-aws's own. ``FREE`` names the job variables that a run may set. Image,
command, roles, cluster and credentials are written in as values, and so no job variable reaches
them. The command sets ``ALLOWED_BUCKETS`` and ``ALLOWED_QUEUES``, over any environment of a run.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect.utilities.templating import apply_values, find_placeholders
from prefect_aws.workers.ecs_worker import ECSWorker

FREE = frozenset({"cpu", "memory", "ephemeral_storage", "launch_type", "env", "labels", "name"})
"""The job variables that a deployment or a run may set."""

CONTAINER = "prefect"  # the name that prefect-aws's crash detection looks for

EFS_PATH = "/efs/batch"
VOLUME = "efs"

COMMAND = ("prefect", "flow-run", "execute")
"""The worker's own for a flow run."""

STOP_TIMEOUT = 120
"""Seconds between SIGTERM and SIGKILL, the most that Fargate gives: time to abort uploads."""

# https://docs.aws.amazon.com/AmazonECS/latest/developerguide/fargate-task-storage.html
EPHEMERAL_STORAGE = range(21, 201)
"""GiB that can be asked for; without asking there are 20."""


@dataclass(frozen=True)
class Pool:
    """The task of a work pool's runs.

    Attributes:
        role: the stack's output that names the task role.
        mounts_efs: whether the task mounts EFS, for large archives.
    """

    role: str
    mounts_efs: bool


POOLS = {
    "splitter": Pool(role="SplitterRoleArn", mounts_efs=True),
    "listener": Pool(role="ListenerRoleArn", mounts_efs=False),
}


class TemplateError(Exception):
    """An output of the stack or a part of prefect-aws's template is missing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the template; the exit status is 1 if it cannot be made."""
    options = _options(arguments)
    text = sys.stdin.read() if options.outputs == "-" else Path(options.outputs).read_text()
    try:
        template = job_template(
            outputs_of(text),
            options.image,
            pool=options.pool,
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
    pool: str = "splitter",
    cpu: int = 2048,
    memory: int = 4096,
    ephemeral_storage: int = 100,
    capacity: str = "FARGATE",
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The base job template for ``prefect work-pool create --base-job-template``.

    Args:
        outputs: of deploy/stack.yaml.
        pool: splitter or listener.
        cpu: units, 1024 to a virtual CPU.
        memory: MiB.
        ephemeral_storage: GiB, 21 to 200.
        capacity: FARGATE or FARGATE_SPOT.
        env: further variables of the containers' environment; ALLOWED_* replace the stack's.

    Raises:
        TemplateError: if an output, or a part of prefect-aws's template, is not there.
    """
    environment: dict[str, str | None] = _environment(outputs) | dict(env or {})
    allowed = [f"{name}={environment.pop(name)}" for name in ("ALLOWED_BUCKETS", "ALLOWED_QUEUES")]
    template = ECSWorker.get_default_base_job_template()
    _shape_task(template, outputs, POOLS[pool], ephemeral_storage)
    _set_defaults(
        template,
        {
            "cpu": cpu,
            "memory": memory,
            "launch_type": capacity,
            "env": environment,
        },
    )
    _fix(
        template,
        {
            "image": image,
            "command": shlex.join(["env", *allowed, *COMMAND]),
            "container_name": CONTAINER,
            "family": f"{_output(outputs, 'RepositoryUri').rpartition('/')[2]}-{pool}",
            "cluster": _output(outputs, "ClusterArn"),
            "task_role_arn": _output(outputs, POOLS[pool].role),
            "execution_role_arn": _output(outputs, "ExecutionRoleArn"),
            "vpc_id": _output(outputs, "VpcId"),
            "network_configuration": {
                "subnets": _output(outputs, "SubnetIds").split(","),
                "securityGroups": [_output(outputs, "TaskSecurityGroupId")],
                "assignPublicIp": _output(outputs, "AssignPublicIp"),
            },
            "configure_cloudwatch_logs": True,
            "cloudwatch_logs_prefix": pool,
            "cloudwatch_logs_options": {
                "awslogs-group": _output(outputs, "LogGroupName"),
                "awslogs-create-group": "false",  # the stack makes it, with a retention
                # A run must not stop at a log line while CloudWatch does not answer.
                "mode": "non-blocking",
                "max-buffer-size": "10m",  # ECS's own default
            },
            # One revision of the task definition for all runs, also after the worker restarts.
            "match_latest_revision_in_family": True,
            "auto_deregister_task_definition": False,
            **_secrets(outputs),
        },
    )
    return template


def _secrets(outputs: Mapping[str, str]) -> dict[str, str]:
    """ARNs of the secrets that sign in at Prefect.

    Without them the worker passes its own key to the task as plain text.
    """
    names = {
        "prefect_api_key_secret_arn": "PrefectApiKeySecretArn",
        "prefect_api_auth_string_secret_arn": "PrefectApiAuthStringSecretArn",
    }
    return {name: outputs[output] for name, output in names.items() if outputs.get(output)}


def _fix(template: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Write ``values`` into the template and keep only the variables of ``FREE``.

    A variable in neither gets the worker's default: no credentials but the worker's own.
    """
    properties = _part(template, "variables", "properties")
    for name in (*values, *FREE):
        _part(template, "variables", "properties", name)
    left = {name: f"{{{{ {name} }}}}" for name in FREE}
    template["job_configuration"] = apply_values(
        _part(template, "job_configuration"), {**values, **left}
    )
    template["variables"]["properties"] = {
        name: variable for name, variable in properties.items() if name in FREE
    }
    # prefect-aws's definitions belong to variables that are gone.
    template["variables"].pop("definitions", None)
    template["variables"]["required"] = []
    placeholders = {one.name for one in find_placeholders(template["job_configuration"])}
    if not placeholders <= FREE:
        raise TemplateError(f"a run could choose {', '.join(sorted(placeholders - FREE))}")


def _environment(outputs: Mapping[str, str]) -> dict[str, str | None]:
    return {
        "BIOSPEX_ENVIRONMENT": _output(outputs, "Environment"),  # the pool's owner
        "AWS_REGION": _output(outputs, "ClusterArn").split(":")[3],
        "TRIGGER_QUEUE_URL": _output(outputs, "TriggerQueueUrl"),
        "UPDATES_QUEUE_URL": _output(outputs, "UpdatesQueueUrl"),  # for runs by hand
        "ALLOWED_BUCKETS": _output(outputs, "BucketName"),
        "ALLOWED_QUEUES": _output(outputs, "UpdatesQueueUrl"),
        "EFS_PATH": EFS_PATH,
        "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
        # A task that Spot or a person stops hands its run to the next task.
        "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
        # The worker passes its own settings on, and its home is a path of another machine.
        "PREFECT_HOME": None,
    }


def _shape_task(
    template: dict[str, Any], outputs: Mapping[str, str], pool: Pool, ephemeral_storage: int
) -> None:
    """Add the disk, the EFS volume if the pool has one, and the container's mount point."""
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
    # ECS adds this key. The worker compares its own definition with the one that ECS returns, and
    # would register a new revision for each run.
    definition["enableFaultInjection"] = False
    container["cpu"] = "{{ cpu }}"
    container["memory"] = "{{ memory }}"
    container["stopTimeout"] = STOP_TIMEOUT
    if pool.mounts_efs:
        definition["volumes"] = [
            {
                "name": VOLUME,
                "efsVolumeConfiguration": {
                    "fileSystemId": _output(outputs, "FileSystemId"),
                    "rootDirectory": "/",  # which ECS adds too
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
    """A part of prefect-aws's template."""
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
        description="Print the base job template of an ECS work pool.",
    )
    parser.add_argument("outputs", metavar="OUTPUTS.json", help="the stack's outputs, - for stdin")
    parser.add_argument("--pool", choices=list(POOLS), default="splitter", help="whose (splitter)")
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
