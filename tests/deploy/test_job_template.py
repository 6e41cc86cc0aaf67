"""The base job template of a work pool, made of a real stack's outputs."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect_aws.workers.ecs_worker import ECSJobConfiguration, ECSWorker

from deploy import job_template
from devtools.services import REGION
from tests.deploy.test_ecs_worker import IMAGE, POOLS
from tests.deploy.test_stack import Stack, stack

pytestmark = [
    pytest.mark.usefixtures("aws", "prefect_api"),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS"),
]


@pytest.fixture(scope="module")
def loc(aws: str) -> Iterator[Stack]:
    with stack("loc", WorkerImage=IMAGE) as made:
        yield made


@pytest.fixture(scope="module")
def outputs(loc: Stack) -> dict[str, str]:
    return {one["OutputKey"]: one["OutputValue"] for one in loc.outputs()}


@pytest.mark.parametrize("pool", list(POOLS))
def test_the_worker_recognises_its_task_definition_as_ecs_returns_it(
    pool: str, outputs: dict[str, str]
) -> None:
    """ECS adds its defaults, which must not make another revision for each run.

    What it adds: https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_TaskDefinition.html
    """
    template = job_template.job_template(outputs, IMAGE, pool=pool)
    configuration = asyncio.run(ECSJobConfiguration.from_template_and_values(template, {}))
    worker = ECSWorker(work_pool_name=POOLS[pool])
    run_of_it = FlowRun(flow_id=uuid4(), deployment_id=uuid4())
    asked = worker._prepare_task_definition(configuration, REGION, run_of_it)
    told = deepcopy(asked)
    told |= {"enableFaultInjection": False, "placementConstraints": [], "status": "ACTIVE"}
    told.setdefault("volumes", [])
    for defined in told["containerDefinitions"]:
        for added in ("portMappings", "environment", "mountPoints", "volumesFrom"):
            defined.setdefault(added, [])
        defined |= {"essential": True, "systemControls": []}
        defined["logConfiguration"]["secretOptions"] = []
    logger = logging.getLogger()
    assert worker._task_definitions_equal(asked, told, logger)
    assert not worker._task_definitions_equal(asked, told | {"cpu": "1"}, logger)


def test_both_forms_of_the_outputs_are_read(loc: Stack, outputs: dict[str, str]) -> None:
    assert job_template.outputs_of(json.dumps(loc.outputs())) == outputs
    assert job_template.outputs_of(json.dumps(outputs)) == outputs


@pytest.mark.parametrize("text", ["", "{", "5", '[{"a": "b"}]', '["a"]'])
def test_invalid_outputs_are_refused(text: str) -> None:
    with pytest.raises(job_template.TemplateError, match="not JSON of the kind"):
        job_template.outputs_of(text)


def test_defaults_and_spot(outputs: dict[str, str]) -> None:
    template = job_template.job_template(outputs, IMAGE, capacity="FARGATE_SPOT")
    variables = template["variables"]["properties"]
    chosen = {name: variable.get("default") for name, variable in variables.items()}
    assert chosen["launch_type"] == "FARGATE_SPOT"
    assert (chosen["cpu"], chosen["memory"], chosen["ephemeral_storage"]) == (2048, 4096, 100)
    assert set(chosen) == job_template.FREE
    network = template["job_configuration"]["network_configuration"]
    assert network["subnets"] == outputs["SubnetIds"].split(",")
    assert network["securityGroups"] == [outputs["TaskSecurityGroupId"]]
    assert network["assignPublicIp"] == "ENABLED"


@pytest.mark.parametrize(
    "missing", ["ClusterArn", "VpcId", "FileSystemId", "SubnetIds", "UpdatesQueueUrl"]
)
def test_a_missing_output_is_named(missing: str, outputs: dict[str, str]) -> None:
    left = {name: value for name, value in outputs.items() if name != missing}
    with pytest.raises(job_template.TemplateError, match=f"no output {missing}"):
        job_template.job_template(left, IMAGE)


def test_the_command_names_the_missing_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "outputs.json"
    path.write_text("[]")
    assert job_template.main(["--image", IMAGE, str(path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("No job template: the stack has no output ")


def without_variable(template: Any) -> None:
    del template["variables"]["properties"]["task_role_arn"]


def without_container(template: Any) -> None:
    template["job_configuration"]["task_definition"]["containerDefinitions"] = []


def without_fargate(template: Any) -> None:
    template["variables"]["properties"]["launch_type"]["enum"] = ["EC2"]


def with_a_disk_of_its_own(template: Any) -> None:
    template["variables"]["properties"]["ephemeral_storage"] = {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_variable, "has no variables / properties / task_role_arn any more"),
        (without_container, "has no containerDefinitions / 0 any more"),
        (without_fargate, "FARGATE is none of launch_type's values"),
        (with_a_disk_of_its_own, "has a variable 'ephemeral_storage' of its own"),
    ],
)
def test_a_template_that_prefect_aws_has_changed_is_refused(
    change: Callable[[Any], None],
    says: str,
    outputs: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = ECSWorker.get_default_base_job_template()
    change(changed)
    monkeypatch.setattr(ECSWorker, "get_default_base_job_template", classmethod(lambda _: changed))
    with pytest.raises(job_template.TemplateError, match=says):
        job_template.job_template(outputs, IMAGE)
