"""Good and wrong answers to the questions of deploy.sh, and the checks of them."""

from collections.abc import Iterator
from typing import Any

from deploy.account import Stack
from deploy.answers import Case
from deploy.preflight import Finding

GOOD: dict[str, Any] = {
    "SHAPE": "pools",
    "AWS_REGION": "us-east-2",
    "BUCKET": "biospex-dev",
    "VPC_ID": "vpc-0a1b",
    "SUBNET_IDS": "subnet-1,subnet-2",
    "ASSIGN_PUBLIC_IP": "ENABLED",
    "TRIGGER_QUEUE_ARN": "",
    "UPDATES_QUEUE_ARN": "arn:aws:sqs:us-east-2:123456789012:dev-batch-update",
    "ALARM_TOPIC_ARN": "arn:aws:sns:us-east-2:123456789012:operators",
    "LOG_RETENTION_DAYS": "90",
    "PREFECT_API_URL": "https://prefect.example.org/api",
    "PREFECT_SECRET_ARN": (
        "arn:aws:secretsmanager:us-east-2:123456789012:secret:biospex-prefect-AbCdEf"
    ),
    "NOTIFICATION_BLOCK": "slack-webhook/operators",
    "CPU": "2048",
    "MEMORY": "4096",
    "EPHEMERAL_STORAGE": "100",
    "CAPACITY": "FARGATE",
    "FLOW_SETTINGS": "BATCH_SIZE=1000 PREFECT_LOGGING_LEVEL=DEBUG",
    "LIFECYCLE_RULES": "no",
}

WRONG: dict[str, Any] = {
    "SHAPE": "double",
    "VPC_ID": "my-vpc",
    "SUBNET_IDS": "a,b,c,d",
    "ASSIGN_PUBLIC_IP": "MAYBE",
    "TRIGGER_QUEUE_ARN": "t.fifo",
    "UPDATES_QUEUE_ARN": "u",
    "ALARM_TOPIC_ARN": "operators",
    "LOG_RETENTION_DAYS": "91",
    "PREFECT_SECRET_ARN": "user:password",
    "NOTIFICATION_BLOCK": "operators",
    "CPU": "2000",
    "MEMORY": "4 GB",
    "EPHEMERAL_STORAGE": "20",
    "CAPACITY": "SPOT",
    "FLOW_SETTINGS": "BATCHSIZE=10 BATCH_SIZE=abc BATCH_SIZE AWS_PROFILE=x",
    "LIFECYCLE_RULES": "maybe",
    "BUCKET": "Biospex_App",
}
"""Twenty, as four are in FLOW_SETTINGS."""


def case(
    environment: str = "dev",
    *,
    resources: frozenset[str] = frozenset(),
    outputs: dict[str, str] | None = None,
    open_api: bool = False,
    **changed: Any,
) -> Case:
    """Good answers without queue and topic, apart from the changed ones."""
    given = {**GOOD, "UPDATES_QUEUE_ARN": "", "ALARM_TOPIC_ARN": "", **changed}
    return Case(environment, given, Stack(outputs=outputs or {}, resources=resources), open_api)


def only(found: Iterator[Finding], text: str, level: str = "stop") -> None:
    """Assert that there is one finding, of that level, whose sentence has the text."""
    [finding] = found
    assert finding.level == level
    assert text in finding.sentence
    assert len(finding.sentence.splitlines()) == 1
