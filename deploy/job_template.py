"""The base job template of an ECS work pool, made from the stack's outputs.

There are two pools, because listener and splitter have different roles: the splitter's has no right
to the trigger queue, the listener's none to the bucket.

The template is prefect-aws's own. A run may set only the job variables in ``FREE``; image, command,
roles, cluster and credentials are fixed values. The command sets ``ALLOWED_BUCKETS`` and
``ALLOWED_QUEUES``, over any environment of a run.
"""

import shlex
from collections.abc import Mapping
from typing import Any, Literal

from prefect.utilities.templating import apply_values
from prefect_aws.workers.ecs_worker import ECSWorker

Pool = Literal["splitter", "listener"]

FREE = frozenset({"cpu", "memory", "ephemeral_storage", "launch_type", "env", "labels", "name"})

EFS_PATH = "/efs/batch"


def job_template(
    outputs: Mapping[str, str],
    image: str,
    pool: Pool,
    env: Mapping[str, str] | None = None,
    **defaults: Any,
) -> dict[str, Any]:
    """The base job template of a work pool.

    Args:
        outputs: of deploy/stack.yaml.
        env: further variables of the containers' environment; ALLOWED_* replace the stack's.
        defaults: of the job variables ``cpu`` (1024 to a virtual CPU), ``memory`` (MiB),
            ``ephemeral_storage`` (GiB) and ``launch_type``.
    """
    environment = _environment(outputs) | dict(env or {})
    allowed = [f"{name}={environment.pop(name)}" for name in ("ALLOWED_BUCKETS", "ALLOWED_QUEUES")]
    template = ECSWorker.get_default_base_job_template()
    configuration, variables = template["job_configuration"], template["variables"]
    properties = variables["properties"]
    disk = {"title": "Ephemeral Storage", "type": "integer", "minimum": 21, "maximum": 200}
    about = {"description": "GiB of the task's own disk, on which archives are unpacked."}
    properties["ephemeral_storage"] = disk | about
    for name, default in {"launch_type": "FARGATE", "env": environment, **defaults}.items():
        properties[name]["default"] = default
    _shape_task(configuration["task_definition"], outputs, mounts_efs=pool == "splitter")
    fixed = {
        "image": image,
        "command": shlex.join(["env", *allowed, "prefect", "flow-run", "execute"]),
        "container_name": "prefect",  # the name that prefect-aws's crash detection looks for
        "family": f"{outputs['RepositoryUri'].rpartition('/')[2]}-{pool}",
        "cluster": outputs["ClusterArn"],
        "task_role_arn": outputs[f"{pool.title()}RoleArn"],
        "execution_role_arn": outputs["ExecutionRoleArn"],
        # Without a secret the worker passes its own key to the task as plain text.
        "prefect_api_key_secret_arn": outputs.get("PrefectApiKeySecretArn"),
        "prefect_api_auth_string_secret_arn": outputs.get("PrefectApiAuthStringSecretArn"),
        "vpc_id": outputs["VpcId"],
        "network_configuration": {
            "subnets": outputs["SubnetIds"].split(","),
            "securityGroups": [outputs["TaskSecurityGroupId"]],
            "assignPublicIp": outputs["AssignPublicIp"],
        },
        "configure_cloudwatch_logs": True,
        "cloudwatch_logs_prefix": pool,
        "cloudwatch_logs_options": {
            "awslogs-group": outputs["LogGroupName"],
            "awslogs-create-group": "false",  # the stack makes it, with a retention
            # A run must not stop at a log line while CloudWatch does not answer.
            "mode": "non-blocking",
            "max-buffer-size": "10m",  # ECS's own default
        },
        # One revision of the task definition for all runs, also after the worker restarts.
        "match_latest_revision_in_family": True,
        "auto_deregister_task_definition": False,
    }
    values = {name: value for name, value in fixed.items() if value is not None}
    # A variable in neither gets the worker's default: no credentials but the worker's own.
    values |= {name: f"{{{{ {name} }}}}" for name in FREE}
    template["job_configuration"] = apply_values(configuration, values)
    variables["properties"] = {name: properties[name] for name in FREE}
    variables["required"] = []
    variables.pop("definitions", None)  # of variables that are gone
    return template


def _environment(outputs: Mapping[str, str]) -> dict[str, str | None]:
    return {
        "BIOSPEX_ENVIRONMENT": outputs["Environment"],
        "AWS_REGION": outputs["ClusterArn"].split(":")[3],
        "TRIGGER_QUEUE_URL": outputs["TriggerQueueUrl"],
        "UPDATES_QUEUE_URL": outputs["UpdatesQueueUrl"],  # for runs by hand
        "ALLOWED_BUCKETS": outputs["BucketName"],
        "ALLOWED_QUEUES": outputs["UpdatesQueueUrl"],
        "EFS_PATH": EFS_PATH,
        "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
        # A task that Spot or a person stops hands its run to the next task.
        "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
        # The worker passes its own settings on, and its home is a path of another machine.
        "PREFECT_HOME": None,
    }


def _shape_task(definition: Any, outputs: Mapping[str, str], *, mounts_efs: bool) -> None:
    """Add the size, the disk and, for large archives, the EFS volume."""
    [container] = definition["containerDefinitions"]
    definition["ephemeralStorage"] = {"sizeInGiB": "{{ ephemeral_storage }}"}
    # ECS adds this key. Without it the worker's own definition would differ from the one that ECS
    # returns, and the worker would register a new revision for each run.
    definition["enableFaultInjection"] = False
    # Seconds from SIGTERM to SIGKILL, the most that Fargate gives: time to abort uploads.
    container |= {"cpu": "{{ cpu }}", "memory": "{{ memory }}", "stopTimeout": 120}
    if mounts_efs:
        volume = {
            "fileSystemId": outputs["FileSystemId"],
            "rootDirectory": "/",  # which ECS adds too
            "transitEncryption": "ENABLED",
            "authorizationConfig": {"accessPointId": outputs["AccessPointId"], "iam": "ENABLED"},
        }
        definition["volumes"] = [{"name": "efs", "efsVolumeConfiguration": volume}]
        mount = {"sourceVolume": "efs", "containerPath": EFS_PATH, "readOnly": False}
        container["mountPoints"] = [mount]
