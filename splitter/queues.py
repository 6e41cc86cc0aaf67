"""SQS: send a callback, receive triggers, keep them invisible, delete them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.config import Config
from botocore.exceptions import ClientError

from splitter.errors import error_code, require_field
from splitter.messages import Failure, ReplyAddress, Result, to_json

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
MAX_RECEIVE = 10
MAX_WAIT = 20

CLIENT_CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": 5},
    connect_timeout=10,
    read_timeout=MAX_WAIT + 10,
)


@dataclass
class Delivery:
    """A message as it was received: SQS knows this delivery by its receipt handle.

    Attributes:
        received: ``time.monotonic()`` of the request that brought it, seconds.
    """

    message_id: str
    body: str
    receipt_handle: str
    received: float


class TriggerQueue:
    """The queue that tells of exports to split."""

    def __init__(self, client: "SQSClient", url: str, visibility_timeout: int) -> None:
        """``visibility_timeout``: seconds a message stays invisible after each ``keep``."""
        self._client = client
        self.url = url
        self.visibility_timeout = visibility_timeout

    def has_redrive_policy(self) -> bool:
        """Whether messages that nobody deletes end in a dead-letter queue."""
        attributes = self._client.get_queue_attributes(
            QueueUrl=self.url, AttributeNames=["RedrivePolicy"]
        )
        return bool(attributes.get("Attributes", {}).get("RedrivePolicy"))

    def receive(self, limit: int, wait: int) -> Iterator[Delivery]:
        """Up to ``limit`` messages, waiting up to ``wait`` seconds (at most 20) for the first."""
        asked = time.monotonic()
        answer = self._client.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=min(limit, MAX_RECEIVE),
            WaitTimeSeconds=min(wait, MAX_WAIT),
            VisibilityTimeout=self.visibility_timeout,
        )
        for message in answer.get("Messages", ()):
            yield Delivery(message["MessageId"], message["Body"], message["ReceiptHandle"], asked)

    def keep(self, delivery: Delivery) -> bool:
        """Keep a message invisible for another while; False if this delivery has lost it."""
        return self._change(delivery, self.visibility_timeout)

    def release(self, delivery: Delivery) -> bool:
        """Let another listener have the message at once; False if this delivery has lost it."""
        return self._change(delivery, 0)

    def delete(self, delivery: Delivery) -> bool:
        """Remove a message that has been dealt with; False if this delivery has lost it."""
        return self._ask(self._client.delete_message, delivery)

    def _change(self, delivery: Delivery, seconds: int) -> bool:
        request = self._client.change_message_visibility
        return self._ask(request, delivery, VisibilityTimeout=seconds)

    def _ask(self, request: Callable[..., object], delivery: Delivery, **arguments: int) -> bool:
        try:
            request(QueueUrl=self.url, ReceiptHandle=delivery.receipt_handle, **arguments)
        except ClientError as error:
            # The message is visible again, with another listener, or deleted; or 12 hours are over.
            if error_code(error).rpartition(".")[2] in (
                "MessageNotInflight",
                "ReceiptHandleIsInvalid",
                "InvalidParameterValue",
            ):
                return False
            raise
        return True


def send_callback(client: "SQSClient", address: ReplyAddress, message: Result | Failure) -> str:
    """Tell BIOSPEX of the outcome; returns the SQS message id."""
    answer = client.send_message(QueueUrl=address.updates_queue_url, MessageBody=to_json(message))
    return str(require_field(answer, "MessageId"))
