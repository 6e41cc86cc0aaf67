"""The answers of one environment: their questions, types and ranges, and the file that keeps them.

A new answer is one more field of ``Answers``.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from deploy import account

ENVIRONMENTS = ("prod", "dev", "loc")

# -- questions and what they offer


@dataclass
class Draft:
    """The answers so far, as text.

    Attributes:
        last: the answers of the last time.
        given: the answers of this time.
    """

    environment: str
    last: dict[str, str] = field(default_factory=dict)
    stack: account.Stack = field(default_factory=account.Stack)
    given: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """A question. It offers the last answer, else the stack's, else the default.

    Attributes:
        default: a value, or a function that finds it.
        parameter: the parameter of deploy/stack.yaml that gets the answer.
    """

    text: str
    default: str | Callable[[Draft], str] = ""
    parameter: str = ""


def _bucket(draft: Draft) -> str:
    return "biospex-app" if draft.environment == "prod" else f"biospex-{draft.environment}"


def _bucket_key(draft: Draft) -> str:
    try:
        return account.bucket_key(draft.given["BUCKET"])
    except (ClientError, BotoCoreError):  # a check reports a bucket that cannot be read
        return ""


def _queue(suffix: str) -> Callable[[Draft], str]:
    """Finds an existing queue, unless there is a stack; an error of AWS is not its absence."""
    return lambda draft: (
        "" if draft.stack.exists else account.queue_arn(f"{draft.environment}-{suffix}")
    )


def _api_url(_: Draft) -> str:
    """The API of this shell's Prefect profile; may be empty."""
    from prefect.settings import PREFECT_API_URL  # takes seconds

    return str(PREFECT_API_URL.value() or "")


def _by_shape(pools: str, single: str) -> Callable[[Draft], str]:
    return lambda draft: single if draft.given["SHAPE"] == "single" else pools


# -- types and ranges


def _holds(condition: Callable[[Any], Any], sentence: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if not condition(value):
            raise ValueError(sentence)
        return value

    return AfterValidator(check)


def _matches(pattern: str, sentence: str) -> AfterValidator:
    return _holds(lambda value: re.fullmatch(pattern, value), sentence)


def _one_of(allowed: Collection[int], sentence: str) -> AfterValidator:
    return _holds(lambda value: value in allowed, f"{sentence}: {', '.join(map(str, allowed))}")


def _arn(service: str, name: str, sentence: str) -> AfterValidator:
    return _matches(rf"(arn:[^:]+:{service}:[^:]+:[0-9]{{12}}:{name})?", sentence)


def is_this_machine(url: str) -> bool:
    host = str(urlsplit(url).hostname)
    return host in ("localhost", "0.0.0.0", "::1") or host.startswith("127.")  # noqa: S104


# https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_PutRetentionPolicy.html
RETENTIONS = (1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 3653)

# https://docs.aws.amazon.com/AmazonECS/latest/developerguide/fargate-tasks-services.html
MEMORY_OF_CPU: dict[int, Sequence[int]] = {
    256: (512, 1024, 2048),
    512: range(1024, 4096 + 1, 1024),
    1024: range(2048, 8192 + 1, 1024),
    2048: range(4096, 16384 + 1, 1024),
    4096: range(8192, 30720 + 1, 1024),
    8192: range(16384, 61440 + 1, 4096),
    16384: range(32768, 122880 + 1, 8192),
}

Bucket = _matches(
    r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
    "a bucket's name has 3 to 63 small letters, digits, dots and hyphens",
)
Vpc = _matches(r"vpc-[0-9a-f]+", "give the id of a VPC, like vpc-0a1b")
Subnets = _matches(
    r"subnet-[0-9a-f]+(,subnet-[0-9a-f]+){0,2}",
    "give one to three ids like subnet-0a1b, separated by commas without blanks",
)
Distinct = _holds(
    lambda ids: len(set(ids.split(","))) > ids.count(","), "give each subnet only once"
)
NAME = "[A-Za-z0-9_-]+"
Queue = _arn("sqs", NAME, "give the ARN of a standard queue, arn:aws:sqs:REGION:ACCOUNT:NAME")
Topic = _arn("sns", NAME, "give the ARN of a standard topic, arn:aws:sns:REGION:ACCOUNT:NAME")
Key = _arn("kms", "key/.+", "give the ARN of the key itself, arn:aws:kms:REGION:ACCOUNT:key/ID")
Secret = _arn(
    "secretsmanager",
    "secret:.+-[A-Za-z0-9]{6}",
    "give a secret's whole ARN, arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME-6LETTERS",
)
Url = _matches(
    r"https?://[^@/]+/.*(api/?|workspaces/.+)",
    "give the address of the Prefect API, like https://HOST/api, without a password; "
    "docs/where-prefect-runs.md lists the ways to have one",
)
Encrypted = _holds(
    lambda url: url.startswith("https:") or is_this_machine(url),
    "http sends the key unencrypted; use https",
)
Block = _matches(
    r"([a-z0-9-]+/[a-z0-9-]+)?",
    "give type and name of a notification block, like slack-webhook/operators",
)
Days = _one_of(RETENTIONS, "CloudWatch keeps logs for one of")
Cpu = _one_of(MEMORY_OF_CPU, "Fargate has CPU units of")
Memory = Field(ge=512, le=122880)
Disk = Field(ge=21, le=200)
YesOrNo = _matches("y|yes|n|no", "answer yes or no")

# -- the answers

REGION = Ask("AWS region", lambda _: os.environ.get("AWS_REGION") or "us-east-2")
SHAPE = Ask("Shape (pools: a task for each export; single: one for everything)", "pools", "Shape")
BUCKET = Ask("Bucket with export/ and batch/", _bucket, "BucketName")
KEY = Ask("KMS key of the bucket (ARN; empty: none of its own)", _bucket_key, "BucketKeyArn")
VPC = Ask("VPC", lambda _: account.default_vpc(), "VpcId")
SUBNETS = Ask(
    "Subnets, at most 3, each in another zone",
    lambda draft: account.first_subnets(draft.given["VPC_ID"]),
    "SubnetIds",
)
PUBLIC = Ask("Public addresses (DISABLED in subnets with a NAT)", "ENABLED", "AssignPublicIp")
TRIGGER = Ask("Trigger queue (ARN; empty: the stack's)", _queue("batch-trigger"), "TriggerQueueArn")
UPDATES = Ask("Callback queue (ARN; empty: the stack's)", _queue("batch-update"), "UpdatesQueueArn")
TOPIC = Ask("SNS topic for alarms (ARN; empty, not in prod: none)", "", "AlarmTopicArn")
LOGS = Ask("Days that CloudWatch keeps logs", "90", "LogRetentionDays")
API = Ask("Prefect API", _api_url, "PrefectApiUrl")
API_KEY = Ask("Secret with a key of Prefect Cloud (ARN; empty: none)", "", "PrefectApiKeySecretArn")
AUTH = "PrefectApiAuthStringSecretArn"
AUTH_STRING = Ask("Secret with the auth string of a server (ARN; empty: none)", "", AUTH)
NOTICE = Ask("Notify of failed exports by (slack-webhook/NAME; empty: by nothing)")
CPU = Ask("CPU of an export, or of the single task (1024 is one core)", _by_shape("2048", "512"))
MEMORY = Ask("Its memory (MiB)", _by_shape("4096", "2048"))
DISK = Ask("Its disk (GiB, 21 to 200)", _by_shape("100", "21"))
SPOT = Ask("Capacity of the pools (FARGATE or FARGATE_SPOT)", "FARGATE")
SETTINGS = Ask("Settings of the flows (BATCH_SIZE=1000 …, see README)", "", "FlowSettings")
RULES = Ask("Rules of deploy/lifecycle.json for the bucket, if it has none (yes or no)", "no")


@dataclass(frozen=True)
class Answers:
    """The answers, in the order of their questions; a wrong one is None."""

    aws_region: Annotated[str, REGION]
    shape: Annotated[Literal["pools", "single"], SHAPE]
    bucket: Annotated[str, Bucket, BUCKET]
    bucket_key_arn: Annotated[str, Key, KEY]
    vpc_id: Annotated[str, Vpc, VPC]
    subnet_ids: Annotated[str, Subnets, Distinct, SUBNETS]
    assign_public_ip: Annotated[Literal["ENABLED", "DISABLED"], PUBLIC]
    trigger_queue_arn: Annotated[str, Queue, TRIGGER]
    updates_queue_arn: Annotated[str, Queue, UPDATES]
    alarm_topic_arn: Annotated[str, Topic, TOPIC]
    log_retention_days: Annotated[int, Days, LOGS]
    prefect_api_url: Annotated[str, Url, Encrypted, API]
    prefect_api_key_secret_arn: Annotated[str, Secret, API_KEY]
    prefect_api_auth_string_secret_arn: Annotated[str, Secret, AUTH_STRING]
    notification_block: Annotated[str, Block, NOTICE]
    cpu: Annotated[int, Cpu, CPU]
    memory: Annotated[int, Memory, MEMORY]
    ephemeral_storage: Annotated[int, Disk, DISK]
    capacity: Annotated[Literal["FARGATE", "FARGATE_SPOT"], SPOT]
    flow_settings: Annotated[str, SETTINGS]
    lifecycle_rules: Annotated[str, YesOrNo, RULES]


TYPES: dict[str, Any] = {
    name.upper(): kind for name, kind in get_type_hints(Answers, include_extras=True).items()
}
QUESTIONS: dict[str, Ask] = {name: kind.__metadata__[-1] for name, kind in TYPES.items()}
ADAPTERS = {name: TypeAdapter(kind) for name, kind in TYPES.items()}


def offer(name: str, draft: Draft) -> str:
    """The default of a question. An empty last answer counts if the type allows it."""
    asked, last = QUESTIONS[name], draft.last.get(name)
    if last or (last is not None and not _read(name, "")[1]):
        return last
    default = asked.default(draft) if callable(asked.default) else asked.default
    return draft.stack.parameters.get(asked.parameter) or default


def parse(raw: Mapping[str, str]) -> tuple[Answers, dict[str, str]]:
    """The answers, and a sentence for each wrong one by its name."""
    read = {name: _read(name, raw[name]) for name in TYPES}
    answers = Answers(**{name.lower(): value for name, (value, _) in read.items()})
    return answers, {name: sentence for name, (_, sentence) in read.items() if sentence}


def _read(name: str, text: str) -> tuple[Any, str]:
    """The value, or None and a sentence."""
    try:
        return ADAPTERS[name].validate_python(text), ""
    except ValidationError as error:
        return None, error.errors()[0]["msg"].removeprefix("Value error, ")


# -- the file that keeps them


def load(path: Path) -> dict[str, str]:
    """The answers of a file of lines NAME=VALUE; none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = [line.partition("=") for line in lines]
    return {name: value for name, _, value in pairs if name in QUESTIONS}


def save(path: Path, given: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name}={given[name]}\n" for name in QUESTIONS))
