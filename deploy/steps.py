"""The steps of a deployment. Each change is printed before it is made."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from blocks.saved import BLOCK_NAME
from deploy import account, preflight, server
from deploy.account import Stack, client
from deploy.answers import QUESTIONS, Case
from deploy.job_template import Pool, job_template

ROOT = Path(__file__).parent.parent
LISTEN = ".venv/bin/prefect deployment run listen/listen"


class DeploymentError(Exception):
    """The deployment cannot go on; the text says why."""


class Step(NamedTuple):
    """A step of the plan.

    Attributes:
        plan: the things that it does.
        shape: the one shape that has this step, or empty.
    """

    name: str
    run: Callable[[], None]
    plan: str
    shape: str = ""


def execute(*words: str) -> None:
    """Runs a command in the root of the checkout."""
    subprocess.run(words, check=True, cwd=ROOT)  # noqa: S603


@dataclass
class Deployment:
    """One run of deploy.sh.

    Attributes:
        commit: of the image.
        docker: docker or podman.
        listener: its state at the check.
        pools_changed: whether a running listener has old settings.
    """

    case: Case
    commit: str
    docker: str
    dry_run: bool = False
    listener: str = ""
    pools_changed: bool = False

    def __post_init__(self) -> None:
        self.environment, self.given = self.case.environment, self.case.answers
        self.stack, self.stack_name = self.case.stack, f"biospex-{self.environment}"

    @property
    def image(self) -> str:
        return f"{self.stack.outputs.get('RepositoryUri', 'REPOSITORY')}:{self.commit}"

    def steps(self) -> list[Step]:
        """The steps of this shape, in their order."""
        size = "{CPU} CPU units, {MEMORY} MiB, {EPHEMERAL_STORAGE} GiB".format_map(self.given)
        verb = "update" if self.stack.parameters else "create"
        pools = f"{server.POOLS['splitter']} ({size}) and {server.POOLS['listener']}"
        steps = [
            Step("check", self.check, "the answers, the account and Prefect"),
            Step("stack", self.make_stack, f"{verb} {self.stack_name} with everything in AWS"),
            Step("image", self.push_image, f"build {self.commit} with {self.docker}, push it"),
            Step("work pools", self.save_pools, f"create or update {pools}", "pools"),
            Step("blocks", self.save_blocks, "save them, if there are none"),
            Step("deployments", self.deploy_flows, "both flows and automations", "pools"),
            Step("worker", self.serve, "a service of that image", "pools"),
            Step("service", self.serve, f"one task of that image: {size}", "single"),
            Step("listener", self.start_listener, "start a run, if need be", "pools"),
        ]
        return [step for step in steps if step.shape in ("", self.given["SHAPE"])]

    def change(self, description: str, make: Callable[[], Any]) -> None:
        """Prints a change, and makes it unless this is a dry run."""
        print(f"+ {description}")
        if not self.dry_run:
            make()

    def command(self, program: str, *arguments: str) -> None:
        """Prints a command as one could type it, and runs it unless this is a dry run."""
        words = (*program.split(), *arguments)
        self.change(shlex.join(words), lambda: execute(*words))

    def check(self) -> None:
        findings = [*preflight.findings(self.case)]
        for finding in findings:
            print(f"{finding.level}: {finding.sentence}", file=sys.stderr)
        if any(finding.level == "stop" for finding in findings):
            raise DeploymentError('Correct each line that begins with "stop", then try again.')
        self.listener = server.listener_state()
        shape = self.given["SHAPE"]
        if self.listener and self.stack.parameters.get("Shape", shape) != shape:
            raise DeploymentError(
                "The shape changes: cancel the run listen and wait until no export runs, then try "
                "again."
            )

    def make_stack(self) -> None:
        # The service keeps its image until pools and deployments are new.
        self.deploy_stack(self.stack.parameters.get("WorkerImage", ""))
        protect = "aws cloudformation update-termination-protection --enable-termination-protection"
        try:
            self.command(protect, "--stack-name", self.stack_name)
        except subprocess.CalledProcessError:  # a missing right to this is no reason to stop
            print(f"note: the stack {self.stack_name} has no termination protection.")
        bucket = self.given["BUCKET"]
        # S3 replaces all rules of a bucket at once.
        if self.given["LIFECYCLE_RULES"] == "yes" and not account.lifecycle_rules(bucket):
            rules = ("--lifecycle-configuration", "file://deploy/lifecycle.json")
            put = "aws s3api put-bucket-lifecycle-configuration --bucket"
            self.command(put, bucket, *rules)
        arn = self.given["TRIGGER_QUEUE_ARN"]
        if arn and "RedrivePolicy" not in (kept := account.queue(arn)):
            dead = self.stack.outputs.get("DeadLetterQueueArn", "DEAD-LETTER-QUEUE")
            policy = json.dumps({"deadLetterTargetArn": dead, "maxReceiveCount": 1000})
            put = "aws sqs set-queue-attributes --queue-url"
            attributes = json.dumps({"RedrivePolicy": policy})
            self.command(put, kept["QueueUrl"], "--attributes", attributes)

    def deploy_stack(self, worker_image: str) -> None:
        given, kept = self.given, self.stack.parameters
        answers = {one.get("Parameter"): given[name] for name, one in QUESTIONS.items()}
        found = {
            "Environment": self.environment,
            # A bucket without a key of its own can have objects that were written with one.
            "BucketKeyArn": account.bucket_key(given["BUCKET"]) or kept.get("BucketKeyArn", ""),
            "TriggerQueueKeyArn": account.key_of(given["TRIGGER_QUEUE_ARN"]),
            "UpdatesQueueKeyArn": account.key_of(given["UPDATES_QUEUE_ARN"]),
            "SecretKeyArn": account.key_of(given["PREFECT_SECRET_ARN"]),
            "WorkerImage": worker_image,
        }
        pairs = [f"{name}={value}" for name, value in (answers | found).items() if name]
        self.command(
            f"aws cloudformation deploy --stack-name {self.stack_name} --template-file "
            "deploy/stack.yaml --capabilities CAPABILITY_IAM --no-fail-on-empty-changeset "
            "--parameter-overrides",
            *pairs,
        )
        if not self.dry_run:
            self.stack = Stack.named(self.stack_name)

    def push_image(self) -> None:
        registry, _, repository = self.image.rpartition(":")[0].partition("/")
        if self.stack.outputs and "-dirty" not in self.commit:
            named = {"repositoryName": repository, "imageIds": [{"imageTag": self.commit}]}
            if account.found(client("ecr").describe_images, "ImageNotFoundException", **named):
                print(f"{self.image} is there already.")
                return
        base = os.environ.get("BASE_IMAGE")
        argument = ("--build-arg", f"BASE={base}") if base else ()
        build = f"{self.docker} build --platform linux/amd64 --tag {self.image}"
        self.command(build, *argument, ".")
        sign_in = f"{self.docker} login --username AWS --password-stdin {registry}"
        self.command("sh -c", f"aws ecr get-login-password | {sign_in}")
        self.command(self.docker, "push", self.image)

    def save_pools(self) -> None:
        names = {"cpu": "CPU", "memory": "MEMORY", "ephemeral_storage": "EPHEMERAL_STORAGE"}
        size = {variable: int(self.given[name]) for variable, name in names.items()}
        self.save_pool("splitter", size | {"launch_type": self.given["CAPACITY"]})
        # The listener mostly waits, and runs all the time: a small task, and not on Spot.
        self.save_pool("listener", {"cpu": 256, "memory": 1024, "ephemeral_storage": 21})

    def save_pool(self, kind: Pool, defaults: dict[str, Any]) -> None:
        name, wanted = server.POOLS[kind], {}
        if not self.dry_run or "SplitterRoleArn" in self.stack.outputs:
            env = dict(one.split("=", 1) for one in self.given["FLOW_SETTINGS"].split())
            wanted = job_template(self.stack.outputs, self.image, kind, env, **defaults)
        old = server.find_pool(name)
        if old and old.base_job_template == wanted and "-dirty" not in self.commit:
            print(f"{name} is up to date.")
            return
        self.pools_changed = True
        verb = "update" if old else "create"
        self.change(f"{verb} the work pool {name}", lambda: server.save_pool(name, wanted))

    def save_blocks(self) -> None:
        # The archive takes a third of a task's disk and its images two thirds; EFS, for larger
        # archives, costs more. In the shape single two exports share the disk.
        exports = 2 if self.given["SHAPE"] == "single" else 1
        threshold = int(self.given["EPHEMERAL_STORAGE"]) * 1024**3 // 3 // exports
        if server.find_block(BLOCK_NAME, "biospex-workspace"):
            print("The blocks exist already and are not changed.")
            print(f"note: for this disk, Threshold in biospex-workspace should be {threshold}.")
            return
        save = f"save the blocks {BLOCK_NAME}, with the threshold {threshold}"
        self.change(save, lambda: server.save_blocks(self.given["AWS_REGION"], threshold))

    def deploy_flows(self) -> None:
        self.command(".venv/bin/prefect --no-prompt deploy --all")

    def serve(self) -> None:
        self.deploy_stack(self.image)
        block, environment = self.given["NOTIFICATION_BLOCK"], self.environment
        if block and not server.has_notice(environment):
            notify = f"create the automation {server.notice_name(environment)!r}"
            self.change(notify, lambda: server.add_notice(environment, block))

    def start_listener(self) -> None:
        # A scheduled run will start with the new pool; a running one has the old one's settings.
        if self.listener == "scheduled" or (self.listener and not self.pools_changed):
            print(f"The listener is {self.listener}.")
            return
        self.command(LISTEN)
