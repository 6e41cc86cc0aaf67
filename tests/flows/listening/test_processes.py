"""The process of a run that was marked crashed is ended, even if it hangs."""

import logging
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

import boto3
import pytest
from prefect.client.schemas.objects import FlowRun

from flows.listening.processes import RUN_ID, end_leftovers, end_processes, end_run
from tests.helpers.processes import eventually


@pytest.mark.parametrize("number", [signal.SIGCONT, signal.SIGSTOP], ids=["running", "stopped"])
def test_a_process_of_the_run_ends(number: signal.Signals) -> None:
    run = FlowRun(id=uuid4(), flow_id=uuid4())
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"],
        env={**os.environ, RUN_ID: str(run.id)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.readline()
    process.send_signal(number)
    assert end_processes(FlowRun(id=uuid4(), flow_id=uuid4())) == 0
    assert process.poll() is None
    assert end_processes(run) == 1
    process.wait(timeout=30)
    process.stdout.close()


@pytest.mark.parametrize(
    ("minutes", "pool", "is_ended"),
    [(2, None, True), (0, None, False), (2, "pool", False), (None, None, False)],
    ids=["overdue", "due", "in a pool", "running"],
)
def test_leftover_processes_of_an_overdue_run_are_ended(
    minutes: int | None, pool: str | None, is_ended: bool
) -> None:
    now = datetime.now(UTC)
    due = None if minutes is None else now - timedelta(minutes=minutes)
    run = FlowRun(id=uuid4(), flow_id=uuid4(), work_pool_name=pool, name="run")
    run.next_scheduled_start_time = cast(Any, due)
    process = subprocess.Popen(["sleep", "600"], env={**os.environ, RUN_ID: str(run.id)})
    end_leftovers(run, now, logging.getLogger())
    assert (process.poll() is not None) is is_ended
    process.kill()
    process.wait()


@pytest.mark.usefixtures("prefect_api")
def test_an_ecs_task_is_stopped(aws: str) -> None:
    ec2, ecs = boto3.client("ec2"), boto3.client("ecs")
    cluster = ecs.create_cluster(clusterName=f"cluster-{uuid4()}")["cluster"]["clusterArn"]
    ecs.register_task_definition(
        family="run",
        requiresCompatibilities=["FARGATE"],
        networkMode="awsvpc",
        cpu="256",
        memory="512",
        containerDefinitions=[{"name": "run", "image": "image", "memory": 512}],
    )
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    started = ecs.run_task(
        cluster=cluster,
        taskDefinition="run",
        launchType="FARGATE",
        networkConfiguration={"awsvpcConfiguration": {"subnets": [subnet], "securityGroups": []}},
    )
    task = started["tasks"][0]["taskArn"]
    run = FlowRun(id=uuid4(), flow_id=uuid4(), infrastructure_pid=f"{cluster}::{task}")
    end_run(run, logging.getLogger())

    def status() -> str:
        return str(ecs.describe_tasks(cluster=cluster, tasks=[task])["tasks"][0]["desiredStatus"])

    eventually(lambda: status() == "STOPPED")
