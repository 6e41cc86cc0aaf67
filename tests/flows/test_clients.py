"""Clients for queues."""

import pytest

from blocks.saved import Aws
from devtools.services import REGION

pytestmark = pytest.mark.usefixtures("prefect_api", "aws")


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/000000000000/updates", "eu-west-1"),
        ("http://127.0.0.1:5000/000000000000/updates", REGION),
    ],
    ids=["named", "not named"],
)
def test_a_client_has_the_region_that_the_url_names_else_ours(url: str, region: str) -> None:
    assert Aws().sqs(url).meta.region_name == region
