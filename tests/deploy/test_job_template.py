"""The base job template of a work pool; test_ecs_worker.py makes one of a real stack's outputs."""

import asyncio
import logging
from copy import deepcopy
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_aws.workers.ecs_worker import ECSJobConfiguration, ECSWorker

from deploy import job_template
from deploy.server import POOLS
from devtools.services import REGION
from tests.helpers.stacks import IMAGE, OUTPUTS

SIZE: dict[str, Any] = {"cpu": 2048, "memory": 4096, "ephemeral_storage": 100}


@pytest.mark.parametrize("pool", list(POOLS))
def test_the_worker_recognises_its_task_definition_as_ecs_returns_it(pool: Any) -> None:
    """ECS adds its defaults, which must not make another revision for each run.

    What it adds: https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_TaskDefinition.html
    """
    template = job_template.job_template(OUTPUTS, IMAGE, pool, **SIZE)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):  # nothing is asked
        configuration = asyncio.run(ECSJobConfiguration.from_template_and_values(template, {}))
    worker = ECSWorker(work_pool_name=POOLS[pool])
    run_of_it = FlowRun(flow_id=uuid4(), deployment_id=uuid4())
    asked = worker._prepare_task_definition(configuration, REGION, run_of_it)
    returned = deepcopy(asked)
    returned |= {"enableFaultInjection": False, "placementConstraints": [], "status": "ACTIVE"}
    returned.setdefault("volumes", [])
    for defined in returned["containerDefinitions"]:
        for added in ("portMappings", "environment", "mountPoints", "volumesFrom"):
            defined.setdefault(added, [])
        defined |= {"essential": True, "systemControls": []}
        defined["logConfiguration"]["secretOptions"] = []
    logger = logging.getLogger()
    assert worker._task_definitions_equal(asked, returned, logger)
    assert not worker._task_definitions_equal(asked, returned | {"cpu": "1"}, logger)


def test_defaults_and_spot() -> None:
    template = job_template.job_template(
        OUTPUTS, IMAGE, "splitter", **SIZE, launch_type="FARGATE_SPOT"
    )
    variables = template["variables"]["properties"]
    chosen = {name: variable.get("default") for name, variable in variables.items()}
    assert chosen["launch_type"] == "FARGATE_SPOT"
    assert (chosen["cpu"], chosen["memory"], chosen["ephemeral_storage"]) == (2048, 4096, 100)
    assert set(chosen) == job_template.FREE
    network = template["job_configuration"]["network_configuration"]
    assert network["subnets"] == ["subnet-1", "subnet-2"]
    assert network["securityGroups"] == [OUTPUTS["TaskSecurityGroupId"]]
    assert network["assignPublicIp"] == "ENABLED"
