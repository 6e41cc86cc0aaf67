"""Clients for the callback queues, each in the region that its URL names."""

from typing import TYPE_CHECKING

from blocks.saved import Aws
from splitter.aws import sqs as queues
from splitter.messages import ReplyAddress

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient


def client_for(aws: Aws, address: ReplyAddress) -> "SQSClient":
    """A client that finds the queue to which the answer to a request goes."""
    region = queues.region_of(address.updates_queue_url)
    return aws.client("sqs", queues.CLIENT_CONFIG, region)
