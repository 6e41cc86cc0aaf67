"""deploy/answers.py: each wrong answer has a sentence, and each question a default."""

from pathlib import Path
from typing import Any

import pytest

from deploy import answers, preflight
from deploy.account import Stack
from deploy.answers import Case
from tests.helpers.answers import GOOD, WRONG, case

SECRET = GOOD["PREFECT_SECRET_ARN"]


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the checks that need no account."""
    without = ("memory_of_cpu", "flow_settings", "missing_secret", "topic_of_production")
    checks = [one for one in preflight.CHECKS if one[0].__name__ in without]
    monkeypatch.setattr(preflight, "CHECKS", checks)


def sentences(environment: str = "dev", *, open_api: bool = False, **changed: str) -> list[str]:
    """The sentences about answers."""
    asked = case(environment, open_api=open_api, **{**GOOD, **changed})
    return [f"{one.level}: {one.sentence}" for one in preflight.findings(asked)]


def test_good_answers_have_no_findings() -> None:
    assert sentences() == []
    assert sentences("prod") == []
    assert sentences(PREFECT_SECRET_ARN="", open_api=True) == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SHAPE", "double", "one of pools, single"),
        ("BUCKET", "Biospex_App", "small letters"),
        ("BUCKET", "", "small letters"),
        ("VPC_ID", "", "id of a VPC"),
        ("VPC_ID", "my-vpc", "id of a VPC"),
        ("SUBNET_IDS", "", "ids like subnet-"),
        ("SUBNET_IDS", "subnet-1, subnet-2", "without blanks"),
        ("SUBNET_IDS", "subnet-1,subnet-2,subnet-3,subnet-4", "one to three"),
        ("ASSIGN_PUBLIC_IP", "MAYBE", "one of ENABLED, DISABLED"),
        ("TRIGGER_QUEUE_ARN", "https://sqs.us-east-2.amazonaws.com/1/q", "ARN of a standard queue"),
        (
            "TRIGGER_QUEUE_ARN",
            "arn:aws:sqs:us-east-2:123456789012:t.fifo",
            "ARN of a standard queue",
        ),
        ("UPDATES_QUEUE_ARN", "arn:aws:sns:us-east-2:123456789012:u", "ARN of a standard queue"),
        ("ALARM_TOPIC_ARN", "operators", "ARN of a standard topic"),
        ("LOG_RETENTION_DAYS", "91", "one of 1, 3, 5"),
        ("LOG_RETENTION_DAYS", "three months", "one of 1, 3, 5"),
        ("PREFECT_API_URL", "", "docs/where-prefect-runs.md"),
        ("PREFECT_API_URL", "prefect.example.org/api", "like https://HOST/api"),
        ("PREFECT_API_URL", "http://prefect.example.org/api", "with https"),
        ("PREFECT_API_URL", "https://a:b@prefect.example.org/api", "without a password"),
        ("PREFECT_API_URL", "https://prefect.example.org:port/api", "like https://HOST/api"),
        ("PREFECT_API_URL", "https://[::1/api", "like https://HOST/api"),
        ("PREFECT_API_URL", "https://prefect.example.org/\t/api", "like https://HOST/api"),
        ("PREFECT_API_URL", "https://prefect.example.org", "like https://HOST/api"),
        ("PREFECT_SECRET_ARN", "pnu_123", "a secret's whole ARN"),
        ("PREFECT_SECRET_ARN", SECRET.removesuffix("-AbCdEf"), "a secret's whole ARN"),
        ("PREFECT_SECRET_ARN", "", "sign in with a secret"),
        ("NOTIFICATION_BLOCK", "operators", "type and name"),
        ("CPU", "2000", "one of 256, 512"),
        ("CPU", "two", "one of 256, 512"),
        ("MEMORY", "2048", "Fargate gives 2048 CPU units 4096 to 16384 MiB"),
        ("MEMORY", "4 GB", "a whole number"),
        ("MEMORY", "100", "from 512 to 122880"),
        ("EPHEMERAL_STORAGE", "20", "from 21 to 200"),
        ("EPHEMERAL_STORAGE", "201", "from 21 to 200"),
        ("CAPACITY", "SPOT", "one of FARGATE, FARGATE_SPOT"),
        ("FLOW_SETTINGS", "BATCHSIZE=10", "no setting 'BATCHSIZE'"),
        ("FLOW_SETTINGS", "BATCH_SIZE=abc", "valid integer"),
        ("FLOW_SETTINGS", "BATCH_SIZE", "not NAME=VALUE"),
        ("FLOW_SETTINGS", "AWS_SECRET_ACCESS_KEY=x", "no setting"),
        ("LIFECYCLE_RULES", "maybe", "one of yes, no"),
    ],
)
def test_a_wrong_answer_has_one_sentence_that_names_it(name: str, value: Any, says: str) -> None:
    [sentence] = sentences(**{name: value})
    assert sentence.startswith("stop: ")
    assert name in sentence
    assert says in sentence
    assert len(sentence.splitlines()) == 1


def test_production_needs_a_topic() -> None:
    assert sentences("dev", ALARM_TOPIC_ARN="") == []
    [sentence] = sentences("prod", ALARM_TOPIC_ARN="")
    assert "prod needs a topic that somebody reads" in sentence


def test_twenty_wrong_answers_have_twenty_sentences() -> None:
    assert len(sentences(**WRONG)) == 20


def test_a_question_offers_the_last_answer_then_the_stacks_then_a_default() -> None:
    made = Case("dev", stack=Stack({"BucketName": "of-the-stack", "TriggerQueueArn": ""}))
    assert answers.offer("BUCKET", {}, Case("prod")) == "biospex-app"
    assert answers.offer("BUCKET", {}, Case("dev")) == "biospex-dev"
    assert answers.offer("BUCKET", {}, made) == "of-the-stack"
    assert answers.offer("BUCKET", {"BUCKET": "last"}, made) == "last"
    assert answers.offer("BUCKET", {"BUCKET": ""}, made) == "of-the-stack"
    # The stack's own queue is no answer; an empty answer is offered again where it is a valid one.
    assert answers.offer("TRIGGER_QUEUE_ARN", {}, made) == ""
    assert answers.offer("UPDATES_QUEUE_ARN", {"UPDATES_QUEUE_ARN": ""}, Case("dev")) == ""
    assert answers.offer("LOG_RETENTION_DAYS", {}, Case("dev")) == "90"


@pytest.mark.parametrize("output", ["PrefectApiKeySecretArn", "PrefectApiAuthStringSecretArn"])
def test_the_secret_of_an_earlier_stack_is_offered(output: str) -> None:
    made = Case("dev", stack=Stack({output: SECRET}, {output: SECRET}))
    assert answers.offer("PREFECT_SECRET_ARN", {}, made) == SECRET
    assert answers.offer("PREFECT_SECRET_ARN", {"PREFECT_SECRET_ARN": ""}, made) == ""
    assert answers.offer("PREFECT_SECRET_ARN", {}, Case("dev")) == ""


def test_the_file_keeps_the_answers(tmp_path: Path) -> None:
    path = tmp_path / "dev.env"
    assert answers.load(path) == {}
    answers.save(path, GOOD)
    assert answers.load(path) == GOOD
    path.write_text("BUCKET=a=b\nHOME=/x\n\n")
    assert answers.load(path) == {"BUCKET": "a=b"}
