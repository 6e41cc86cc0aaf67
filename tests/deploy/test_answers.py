"""deploy/answers.py: each wrong answer has a sentence, and each question a default."""

from pathlib import Path
from typing import Any

import pytest

from deploy import answers, preflight
from deploy.account import Stack
from deploy.answers import Draft
from tests.helpers.answers import GOOD, WRONG, case

CLOUD = "https://api.prefect.cloud/api/accounts/1/workspaces/2"
SECRET = GOOD["PREFECT_API_AUTH_STRING_SECRET_ARN"]


def sentences(environment: str = "dev", *, open_api: bool = False, **changed: str) -> list[str]:
    """The sentences about answers, without those that need an account."""
    given = {**GOOD, **changed}
    _, wrong = answers.parse(given)
    asked = case(environment, open_api=open_api, **given)
    found = [f"stop: {name}={given[name]!r}: {why}." for name, why in wrong.items()]
    needs = dict(preflight.CHECKS)
    for check in (
        preflight.memory_of_cpu,
        preflight.flow_settings,
        preflight.secrets,
        preflight.topic_of_production,
    ):
        if all(getattr(asked.answers, name) for name in needs[check]):
            found += [f"{one.level}: {one.sentence}" for one in check(asked)]
    return found


def test_good_answers_have_no_findings() -> None:
    assert sentences() == []
    assert sentences("prod") == []
    key: dict[str, Any] = {
        "PREFECT_API_KEY_SECRET_ARN": SECRET,
        "PREFECT_API_AUTH_STRING_SECRET_ARN": "",
    }
    assert sentences(PREFECT_API_URL=CLOUD, **key) == []
    assert sentences(PREFECT_API_AUTH_STRING_SECRET_ARN="", open_api=True) == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SHAPE", "double", "'pools' or 'single'"),
        ("BUCKET", "Biospex_App", "small letters"),
        ("BUCKET", "", "small letters"),
        ("BUCKET_KEY_ARN", "alias/biospex", "ARN of the key"),
        ("BUCKET_KEY_ARN", "arn:aws:kms:us-east-2:123456789012:alias/x", "ARN of the key"),
        ("VPC_ID", "", "id of a VPC"),
        ("VPC_ID", "my-vpc", "id of a VPC"),
        ("SUBNET_IDS", "", "ids like subnet-"),
        ("SUBNET_IDS", "subnet-1, subnet-2", "without blanks"),
        ("SUBNET_IDS", "subnet-1,subnet-2,subnet-3,subnet-4", "one to three"),
        ("SUBNET_IDS", "subnet-1,subnet-1", "only once"),
        ("ASSIGN_PUBLIC_IP", "MAYBE", "'ENABLED' or 'DISABLED'"),
        ("TRIGGER_QUEUE_ARN", "https://sqs.us-east-2.amazonaws.com/1/q", "ARN of a standard queue"),
        (
            "TRIGGER_QUEUE_ARN",
            "arn:aws:sqs:us-east-2:123456789012:t.fifo",
            "ARN of a standard queue",
        ),
        ("UPDATES_QUEUE_ARN", "arn:aws:sns:us-east-2:123456789012:u", "ARN of a standard queue"),
        ("ALARM_TOPIC_ARN", "operators", "ARN of a standard topic"),
        ("LOG_RETENTION_DAYS", "91", "one of: 1, 3, 5"),
        ("LOG_RETENTION_DAYS", "three months", "valid integer"),
        ("PREFECT_API_URL", "", "docs/where-prefect-runs.md"),
        ("PREFECT_API_URL", "prefect.example.org/api", "like https://HOST/api"),
        ("PREFECT_API_URL", "http://prefect.example.org/api", "use https"),
        ("PREFECT_API_URL", "https://a:b@prefect.example.org/api", "without a password"),
        ("PREFECT_API_URL", "https://prefect.example.org", "like https://HOST/api"),
        ("PREFECT_API_KEY_SECRET_ARN", "pnu_123", "a secret's whole ARN"),
        ("PREFECT_API_KEY_SECRET_ARN", SECRET.removesuffix("-AbCdEf"), "a secret's whole ARN"),
        ("PREFECT_API_KEY_SECRET_ARN", SECRET, "leave one of the two empty"),
        ("PREFECT_API_AUTH_STRING_SECRET_ARN", "user:password", "a secret's whole ARN"),
        ("PREFECT_API_AUTH_STRING_SECRET_ARN", "", "sign in with a secret"),
        ("PREFECT_API_URL", CLOUD, "Prefect Cloud takes a key"),
        ("NOTIFICATION_BLOCK", "operators", "type and name"),
        ("CPU", "2000", "CPU units of: 256"),
        ("CPU", "two", "valid integer"),
        ("MEMORY", "2048", "Fargate gives 2048 CPU units 4096 to 16384 MiB"),
        ("MEMORY", "4 GB", "valid integer"),
        ("MEMORY", "100", "greater than or equal to 512"),
        ("EPHEMERAL_STORAGE", "20", "greater than or equal to 21"),
        ("EPHEMERAL_STORAGE", "201", "less than or equal to 200"),
        ("CAPACITY", "SPOT", "'FARGATE' or 'FARGATE_SPOT'"),
        ("FLOW_SETTINGS", "BATCHSIZE=10", "no setting 'BATCHSIZE'"),
        ("FLOW_SETTINGS", "BATCH_SIZE=abc", "valid integer"),
        ("FLOW_SETTINGS", "BATCH_SIZE", "not NAME=VALUE"),
        ("FLOW_SETTINGS", "AWS_SECRET_ACCESS_KEY=x", "no setting"),
        ("LIFECYCLE_RULES", "maybe", "yes or no"),
    ],
)
def test_a_wrong_answer_has_one_sentence_that_names_it(name: str, value: Any, says: str) -> None:
    [sentence] = sentences(**{name: value})
    assert sentence.startswith("stop: ")
    assert name in sentence or (name == "PREFECT_API_URL" and "takes a key" in sentence)
    assert says in sentence
    assert len(sentence.splitlines()) == 1


def test_production_needs_a_topic() -> None:
    assert sentences("dev", ALARM_TOPIC_ARN="") == []
    [sentence] = sentences("prod", ALARM_TOPIC_ARN="")
    assert "prod needs a topic that somebody reads" in sentence


def test_twenty_wrong_answers_have_twenty_sentences() -> None:
    assert len(sentences(**WRONG)) == 20


def test_a_question_offers_the_last_answer_then_the_stacks_then_a_default() -> None:
    made = Stack(parameters={"BucketName": "of-the-stack", "TriggerQueueArn": ""})
    assert answers.offer("BUCKET", Draft("prod")) == "biospex-app"
    assert answers.offer("BUCKET", Draft("dev")) == "biospex-dev"
    assert answers.offer("BUCKET", Draft("dev", stack=made)) == "of-the-stack"
    assert answers.offer("BUCKET", Draft("dev", {"BUCKET": "last"}, made)) == "last"
    assert answers.offer("BUCKET", Draft("dev", {"BUCKET": ""}, made)) == "of-the-stack"
    # The stack's own queue is no answer; an empty answer is offered again where it is a valid one.
    assert answers.offer("TRIGGER_QUEUE_ARN", Draft("dev", stack=made)) == ""
    assert answers.offer("UPDATES_QUEUE_ARN", Draft("dev", {"UPDATES_QUEUE_ARN": ""})) == ""


def test_the_file_keeps_the_answers(tmp_path: Path) -> None:
    path = tmp_path / "dev.env"
    assert answers.load(path) == {}
    answers.save(path, GOOD)
    assert answers.load(path) == GOOD
    path.write_text("BUCKET=a=b\nHOME=/x\n\n")
    assert answers.load(path) == {"BUCKET": "a=b"}
