"""Fixtures of the deployment's tests."""

import io
import json
import zipfile
from collections.abc import Iterator
from uuid import uuid4

import pytest

from deploy import account
from devtools.services import REGION
from tests.helpers.biospex import Biospex, client


@pytest.fixture(scope="module")
def bucket(aws: str) -> str:
    """The name of an empty bucket."""
    name = f"bucket-{uuid4()}"
    client("s3").create_bucket(
        Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    return name


@pytest.fixture
def mapping(biospex: Biospex) -> Iterator[tuple[str, str]]:
    """The old Lambda on the trigger queue: the queue's ARN and the event source mapping's id."""
    arn = account.queue(biospex.trigger_queue_url.rpartition("/")[2])["QueueArn"]
    iam, functions, name = client("iam"), client("lambda"), f"creator-{uuid4()}"
    trust = {"Version": "2012-10-17", "Statement": []}
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("index.js", "")
    functions.create_function(
        FunctionName=name,
        Runtime="nodejs22.x",
        Role=role["Role"]["Arn"],
        Handler="index.handler",
        Code={"ZipFile": code.getvalue()},
    )
    made = functions.create_event_source_mapping(FunctionName=name, EventSourceArn=arn)
    yield arn, made["UUID"]
    functions.delete_event_source_mapping(UUID=made["UUID"])
