"""The answers of one environment: questions, rules and defaults, and the file that keeps them.

A question is a parameter of deploy/stack.yaml, with the description, the default and the rules that
CloudFormation has. ``OWN`` has further questions, and rules that are stricter here.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from prefect.settings import PREFECT_API_URL

from deploy import account

ENVIRONMENTS = ("prod", "dev", "loc")


@dataclass(frozen=True)
class Case:
    """An environment, its answers as text, and its stack.

    Attributes:
        open_api: whether to accept an API without authentication, or on this machine.
    """

    environment: str
    answers: dict[str, str] = field(default_factory=dict)
    stack: account.Stack = field(default_factory=account.Stack)
    open_api: bool = False


# -- questions and rules

OWN: dict[str, dict[str, Any]] = {
    "AWS_REGION": {"Description": "AWS region."},
    "VPC_ID": {
        "AllowedPattern": "vpc-[0-9a-f]+",
        "ConstraintDescription": "give the id of a VPC, like vpc-0a1b",
    },
    "SUBNET_IDS": {
        "AllowedPattern": "subnet-[0-9a-f]+(,subnet-[0-9a-f]+){0,2}",
        "ConstraintDescription": (
            "give one to three ids like subnet-0a1b, separated by commas without blanks"
        ),
    },
    "CAPACITY": {
        "Description": "Capacity of the work pools.",
        "Default": "FARGATE",
        "AllowedValues": ["FARGATE", "FARGATE_SPOT"],
    },
    "NOTIFICATION_BLOCK": {
        "Description": "Prefect's block that notifies of failed exports. Empty for none.",
        "AllowedPattern": "([a-z0-9-]+/[a-z0-9-]+)?",
        "ConstraintDescription": (
            "give type and name of a notification block, like slack-webhook/operators"
        ),
    },
    "LIFECYCLE_RULES": {
        "Description": "Rules of deploy/lifecycle.json for the bucket, if it has none.",
        "Default": "no",
        "AllowedValues": ["yes", "no"],
    },
}
KEYS = ("BucketKeyArn", "TriggerQueueKeyArn", "UpdatesQueueKeyArn", "SecretKeyArn")
FOUND = ("Environment", "WorkerImage", *KEYS)
"""The parameters that deploy.sh finds by itself."""


def _questions() -> dict[str, dict[str, Any]]:
    """The rules of each question, and its ``Parameter``; BucketName is BUCKET, VpcId is VPC_ID."""
    # Only the first section of the template is plain YAML, without functions like !Ref.
    section = Path(__file__).with_name("stack.yaml").read_text().partition("\nRules:")[0]
    questions: dict[str, dict[str, Any]] = {"AWS_REGION": {}}
    for parameter, rules in yaml.safe_load(section)["Parameters"].items():
        if parameter not in FOUND:
            name = re.sub("(?<=[a-z])(?=[A-Z])", "_", parameter.removesuffix("Name")).upper()
            questions[name] = rules | {"Parameter": parameter}
    return {name: questions.get(name, {}) | OWN.get(name, {}) for name in questions | OWN}


QUESTIONS = _questions()


def problem(name: str, text: str) -> str:
    """What is wrong with an answer by itself, or nothing."""
    rules = QUESTIONS[name]
    allowed = [str(one) for one in rules.get("AllowedValues", ())]
    if allowed and text not in allowed:
        return f"choose one of {', '.join(allowed)}"
    if not re.fullmatch(rules.get("AllowedPattern", ".*"), text):
        return str(rules["ConstraintDescription"])
    least, most = rules.get("MinValue", 0), rules.get("MaxValue")
    if most and not (text.isdecimal() and least <= int(text) <= most):
        return f"give a whole number from {least} to {most}"
    return ""


# -- defaults

SIZES = {
    "pools": {"CPU": "2048", "MEMORY": "4096", "EPHEMERAL_STORAGE": "100"},
    "single": {"CPU": "512", "MEMORY": "2048", "EPHEMERAL_STORAGE": "21"},
}
"""The default size of an export's task, or of the single one, by shape."""


def _queue(suffix: str, case: Case) -> str:
    """An existing queue, unless there is a stack; an error of AWS is not its absence."""
    name = f"{case.environment}-{suffix}"
    return "" if case.stack.parameters else account.queue(name).get("QueueArn", "")


def _secret(case: Case) -> str:
    """The secret of an earlier stack, which has a parameter for each kind and the same outputs."""
    kinds = ("PrefectApiKeySecretArn", "PrefectApiAuthStringSecretArn")
    return next((case.stack.outputs[kind] for kind in kinds if kind in case.stack.outputs), "")


def _size(name: str, case: Case) -> str:
    return SIZES.get(case.answers["SHAPE"], SIZES["pools"])[name]


DEFAULTS: dict[str, Callable[[Case], str]] = {
    "AWS_REGION": lambda _: os.environ.get("AWS_REGION") or "us-east-2",
    "BUCKET": lambda case: f"biospex-{case.environment}".replace("prod", "app"),
    "VPC_ID": lambda _: account.default_vpc(),
    "SUBNET_IDS": lambda case: account.first_subnets(case.answers["VPC_ID"]),
    "TRIGGER_QUEUE_ARN": partial(_queue, "batch-trigger"),
    "UPDATES_QUEUE_ARN": partial(_queue, "batch-update"),
    "PREFECT_API_URL": lambda _: str(PREFECT_API_URL.value() or ""),
    "PREFECT_SECRET_ARN": _secret,
    **{name: partial(_size, name) for name in SIZES["pools"]},
}


def offer(name: str, last: Mapping[str, str], case: Case) -> str:
    """The last answer, else the stack's, else the default. An empty one counts where allowed."""
    answered = last.get(name)
    if answered or (answered is not None and not problem(name, "")):
        return answered
    rules = QUESTIONS[name]
    if made := case.stack.parameters.get(rules.get("Parameter", "")):
        return made
    return DEFAULTS[name](case) if name in DEFAULTS else str(rules.get("Default", ""))


# -- the file that keeps them


def load(path: Path) -> dict[str, str]:
    """The answers of a file of lines NAME=VALUE; none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = [line.partition("=") for line in lines]
    return {name: value for name, _, value in pairs if name in QUESTIONS}


def save(path: Path, answers: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name}={answers[name]}\n" for name in QUESTIONS))
