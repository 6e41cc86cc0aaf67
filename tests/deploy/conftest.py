"""Fixtures of the deployment's tests."""

from uuid import uuid4

import pytest

from devtools.services import REGION
from tests.helpers.stacks import client


@pytest.fixture(scope="module")
def bucket(aws: str) -> str:
    """The name of an empty bucket."""
    name = f"bucket-{uuid4()}"
    client("s3").create_bucket(
        Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    return name
