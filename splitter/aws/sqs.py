"""Receives triggers from SQS, extends their visibility, acknowledges them and sends callbacks."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.exceptions import ClientError

from splitter.errors import Kind, SetupError, error_code, is_kind, is_transient, require_field
from splitter.messages import Failure, ReplyAddress, Result, to_json
from splitter.sentences import Actor, Sentence

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
MAX_RECEIVE = 10
MAX_WAIT = 20

REJECTIONS_BEFORE_DEAD_LETTER = 6
"""Rejections of a message by one listener before it becomes a dead letter."""

SECONDS_BETWEEN_RECEIVES = 10
"""Seconds until a rejected message is visible again: about a minute in all to correct its cause."""

REGION_OF_HOST = re.compile(
    # https://docs.aws.amazon.com/general/latest/gr/sqs-service.html, with the older names
    r"^(?:[^/]+\.)?(?:sqs(?:-fips)?\.(?P<new>[a-z0-9-]+)|(?P<old>[a-z0-9-]+)\.queue)"
    r"\.(?:vpce\.)?(?:amazonaws\.com(?:\.cn)?|api\.aws)$"
)

CLIENT_CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": 5},
    connect_timeout=10,
    read_timeout=MAX_WAIT + 10,
)


@dataclass
class Delivery:
    """A received message. The receipt handle identifies this delivery.

    Attributes:
        received: ``time.monotonic()`` at the start of the receive request.
    """

    message_id: str
    body: str
    receipt_handle: str
    received: float


class CallbackError(SetupError):
    """The callback queue of a request cannot be used."""


NO_CALLBACK_QUEUE = Sentence(
    "callback.queue",
    "the queue {queue:long}, where the answer goes, cannot be used ({code:bare}); check that it "
    "exists and that its policy lets this service send to it.",
    Actor.OPERATOR,
    "Make the queue, or let the role of the tasks send to it, then press Retry.",
)
TRIGGER_QUEUE_REFUSED = Sentence(
    "listener.queue",
    "the listener cannot use its trigger queue {queue:long} ({code:bare}).",
    Actor.OPERATOR,
    "Check that TRIGGER_QUEUE_URL names a queue that exists, and let the listener's role use "
    "sqs:ReceiveMessage, sqs:DeleteMessage, sqs:ChangeMessageVisibility and "
    "sqs:GetQueueAttributes on it. The listener tries again by itself.",
)


class TriggerQueue:
    """The queue of the triggers.

    ``visibility_timeout`` is in seconds. Methods on a ``Delivery`` return False if it has lost the
    message: another delivery has it, or it was deleted.
    """

    def __init__(self, client: "SQSClient", url: str, visibility_timeout: int) -> None:
        self._client = client
        self._dead_letter_queue: str | None = None
        self._rejections: Counter[str] = Counter()
        self.url = url
        self.visibility_timeout = visibility_timeout

    def has_redrive_policy(self) -> bool:
        """Whether the queue has a dead-letter queue. ``reject`` uses it from then on."""
        answer = self._ask(self._client.get_queue_attributes, AttributeNames=["RedrivePolicy"])
        policy = json.loads(answer.get("Attributes", {}).get("RedrivePolicy", "{}"))
        if policy:  # SQS requires both queues to be in one account and region
            name = policy["deadLetterTargetArn"].rpartition(":")[2]
            self._dead_letter_queue = f"{self.url.rpartition('/')[0]}/{name}"
        return bool(policy)

    def receive(self, limit: int, wait: int) -> Iterator[Delivery]:
        """Up to ``limit`` messages, after waiting up to ``wait`` seconds (at most 20)."""
        asked = time.monotonic()
        answer = self._ask(
            self._client.receive_message,
            MaxNumberOfMessages=min(limit, MAX_RECEIVE),
            WaitTimeSeconds=min(wait, MAX_WAIT),
            VisibilityTimeout=self.visibility_timeout,
        )
        for message in answer.get("Messages", ()):
            yield Delivery(message["MessageId"], message["Body"], message["ReceiptHandle"], asked)

    def extend_visibility(self, delivery: Delivery) -> bool:
        """Keep a message invisible for another ``visibility_timeout``."""
        return self._change(delivery, self.visibility_timeout)

    def release(self, delivery: Delivery) -> bool:
        """Make a message visible to other listeners at once."""
        return self._change(delivery, 0)

    def reject(self, delivery: Delivery) -> bool:
        """Move a message that cannot get a callback to the dead-letter queue.

        The queue's ``maxReceiveCount`` cannot do this, because it also counts each restart of the
        listener. The message first becomes visible again a few times, for about a minute.

        Returns:
            Whether it was moved. Without a dead-letter queue it never is.
        """
        if not self._dead_letter_queue:
            self._change(delivery, self.visibility_timeout)
            return False
        self._rejections[delivery.message_id] += 1
        if self._rejections[delivery.message_id] < REJECTIONS_BEFORE_DEAD_LETTER:
            self._change(delivery, SECONDS_BETWEEN_RECEIVES)
            return False
        self._client.send_message(QueueUrl=self._dead_letter_queue, MessageBody=delivery.body)
        del self._rejections[delivery.message_id]
        return self.acknowledge(delivery)

    def acknowledge(self, delivery: Delivery) -> bool:
        """Delete a message."""
        return self._ask_about(self._client.delete_message, delivery)

    def _change(self, delivery: Delivery, seconds: int) -> bool:
        request = self._client.change_message_visibility
        return self._ask_about(request, delivery, VisibilityTimeout=seconds)

    def _ask_about(self, request: Callable[..., Any], delivery: Delivery, **values: int) -> bool:
        try:
            self._ask(request, ReceiptHandle=delivery.receipt_handle, **values)
        except ClientError as error:
            if is_kind(error, Kind.LEASE_LOST):
                return False
            raise
        return True

    def _ask(self, request: Callable[..., Any], **values: Any) -> Any:
        """Send a request about the queue.

        Raises:
            SetupError: if the queue is missing or the credentials lack a permission.
        """
        try:
            return request(QueueUrl=self.url, **values)
        except ClientError as error:
            if is_kind(error, Kind.REFUSED, Kind.MISSING):
                code = error_code(error)
                raise SetupError(TRIGGER_QUEUE_REFUSED, queue=self.url, code=code) from error
            raise


def region_of(queue_url: str) -> str | None:
    """The AWS region in a queue's URL, or None. A client of another region finds no queue."""
    host = REGION_OF_HOST.match(urlsplit(queue_url).hostname or "")
    return host and (host["new"] or host["old"])


class CallbackQueue:
    """The queue of the callbacks of one request."""

    def __init__(self, connect: "Callable[[str], SQSClient]", address: ReplyAddress) -> None:
        """``connect`` returns a client for the queue of a URL."""
        self._client = connect(address.updates_queue_url)
        self._url = address.updates_queue_url
        self._group = sha256(str(address.download_id).encode()).hexdigest()

    def check(self) -> None:
        """Check before the work that the queue exists.

        Whether it accepts messages is known only when one is sent: the permission to send does not
        include the permission to read attributes.

        Raises:
            CallbackError: if there is no such queue.
        """
        try:
            self._client.get_queue_attributes(QueueUrl=self._url, AttributeNames=["QueueArn"])
        except ClientError as error:
            if is_kind(error, Kind.MISSING):
                raise self._error(error) from error
            if is_transient(error):
                raise

    def send(self, message: Result | Failure) -> str:
        """Send a callback and return its SQS message id.

        A FIFO queue delivers the callbacks of one download in order, and drops a callback that is
        repeated within five minutes.

        Raises:
            CallbackError: if the queue is missing or refuses the message.
        """
        body = to_json(message)
        fifo: dict[str, Any] = {}
        if self._url.endswith(".fifo"):
            repeated = sha256(body.encode()).hexdigest()
            fifo = {"MessageGroupId": self._group, "MessageDeduplicationId": repeated}
        try:
            answer = self._client.send_message(QueueUrl=self._url, MessageBody=body, **fifo)
        except ClientError as error:
            if is_transient(error):
                raise
            raise self._error(error) from error
        return str(require_field(answer, "MessageId"))

    def _error(self, error: ClientError) -> CallbackError:
        return CallbackError(NO_CALLBACK_QUEUE, queue=self._url, code=error_code(error))
