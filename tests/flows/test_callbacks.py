"""Clients for callback queues: where they go."""

import pytest

from blocks.saved import Aws
from devtools.services import REGION
from flows.support.callbacks import client_for
from splitter.messages import ReplyAddress

pytestmark = pytest.mark.usefixtures("prefect_api", "aws")


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/000000000000/updates", "eu-west-1"),
        ("http://127.0.0.1:5000/000000000000/updates", REGION),
    ],
    ids=["named", "not named"],
)
def test_a_queue_is_asked_in_the_region_that_its_url_names_else_in_ours(
    url: str, region: str
) -> None:
    address = ReplyAddress(download_id=1, updates_queue_url=url)
    assert client_for(Aws(), address).meta.region_name == region
