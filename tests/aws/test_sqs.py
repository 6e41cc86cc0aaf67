import json
from dataclasses import replace
from uuid import uuid4

import pytest

from splitter.aws.sqs import (
    REJECTIONS_BEFORE_DEAD_LETTER,
    CallbackError,
    CallbackQueue,
    Delivery,
    TriggerQueue,
    region_of,
)
from splitter.errors import SetupError
from splitter.messages import Failure, ReplyAddress, Result
from tests.helpers.biospex import Biospex, messages


@pytest.fixture
def queue(biospex: Biospex) -> TriggerQueue:
    return TriggerQueue(biospex.sqs, biospex.queue_url, visibility_timeout=300)


def send(biospex: Biospex, *bodies: str) -> None:
    for body in bodies:
        biospex.sqs.send_message(QueueUrl=biospex.queue_url, MessageBody=body)


def only(queue: TriggerQueue) -> Delivery:
    (delivery,) = queue.receive(limit=10, wait=0)
    return delivery


def invisible(biospex: Biospex) -> int:
    return messages(biospex.sqs, biospex.queue_url)[1]


def test_an_empty_queue_gives_nothing(queue: TriggerQueue) -> None:
    assert list(queue.receive(limit=4, wait=0)) == []


def test_a_message_arrives_as_it_was_sent(biospex: Biospex, queue: TriggerQueue) -> None:
    send(biospex, '{"file": "ü\\n.zip"}')
    assert only(queue).body == '{"file": "ü\\n.zip"}'


@pytest.mark.parametrize(("limit", "received"), [(1, 1), (4, 4), (10, 10), (50, 10)])
def test_no_more_messages_come_than_are_wanted(
    limit: int, received: int, biospex: Biospex, queue: TriggerQueue
) -> None:
    send(biospex, *map(str, range(12)))
    assert len(list(queue.receive(limit, wait=0))) == received


def test_a_message_that_is_kept_does_not_come_again(biospex: Biospex, queue: TriggerQueue) -> None:
    send(biospex, "1")
    delivery = only(queue)
    assert queue.extend_visibility(delivery)
    assert list(queue.receive(limit=10, wait=0)) == []
    assert invisible(biospex) == 1


def test_a_message_that_is_released_comes_again_at_once(
    biospex: Biospex, queue: TriggerQueue
) -> None:
    send(biospex, "1")
    first = only(queue)
    assert queue.release(first)
    second = only(queue)
    assert second.message_id == first.message_id
    assert second.receipt_handle != first.receipt_handle


def test_a_message_that_is_deleted_is_gone(biospex: Biospex, queue: TriggerQueue) -> None:
    send(biospex, "1")
    queue.acknowledge(only(queue))
    assert invisible(biospex) == 0
    assert list(queue.receive(limit=10, wait=0)) == []


def test_a_message_that_is_gone_can_neither_be_kept_nor_released(
    biospex: Biospex, queue: TriggerQueue
) -> None:
    send(biospex, "1")
    delivery = only(queue)
    assert queue.acknowledge(delivery)
    assert not queue.extend_visibility(delivery)
    assert not queue.release(delivery)


def test_an_expired_receipt_handle_deletes_nothing_and_raises_nothing(
    biospex: Biospex, queue: TriggerQueue
) -> None:
    send(biospex, "1")
    delivery = only(queue)
    assert not queue.acknowledge(replace(delivery, receipt_handle="expired"))
    assert invisible(biospex) == 1


def test_a_trigger_queue_that_is_not_there_is_the_operators(
    biospex: Biospex, queue: TriggerQueue
) -> None:
    gone = TriggerQueue(biospex.sqs, queue.url + "-gone", visibility_timeout=300)
    with pytest.raises(SetupError, match=r"cannot use its trigger queue .*NonExistentQueue"):
        gone.extend_visibility(Delivery("id", "body", "handle", 0.0))
    with pytest.raises(SetupError, match="cannot use its trigger queue"):
        next(gone.receive(1, 0))


def test_a_redrive_policy_is_found(biospex: Biospex, queue: TriggerQueue) -> None:
    assert not queue.has_redrive_policy()
    with_redrive_policy(biospex, 3)
    assert queue.has_redrive_policy()


def with_redrive_policy(biospex: Biospex, receives: int) -> str:
    """Give the queue a dead-letter queue; returns its URL."""
    dead = biospex.sqs.create_queue(QueueName=f"dead-{uuid4()}")["QueueUrl"]
    attributes = biospex.sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])[
        "Attributes"
    ]
    policy = {"deadLetterTargetArn": attributes["QueueArn"], "maxReceiveCount": receives}
    biospex.sqs.set_queue_attributes(
        QueueUrl=biospex.queue_url, Attributes={"RedrivePolicy": json.dumps(policy)}
    )
    return dead


@pytest.mark.parametrize(
    "message",
    [
        Result(download_id=512, batch_files=["a-part1.zip"]),
        Failure(download_id="ü", error="The archive has '\uffff', \x01 and \x00 in a name."),
    ],
    ids=["success", "failure with characters that SQS refuses"],
)
def test_a_callback_arrives_in_the_queue_of_its_request(
    message: Result | Failure, biospex: Biospex, queue: TriggerQueue
) -> None:
    address = ReplyAddress(download_id=512, updates_queue_url=queue.url)
    message_id = CallbackQueue(lambda _: biospex.sqs, address).send(message)
    delivery = only(queue)
    assert delivery.message_id == message_id
    assert json.loads(delivery.body) == message.model_dump(by_alias=True)


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/000000000000/q", "eu-west-1"),
        ("https://sqs-fips.us-east-2.amazonaws.com/000000000000/q", "us-east-2"),
        ("https://us-west-1.queue.amazonaws.com/000000000000/q", "us-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/000000000000/q", "cn-north-1"),
        ("https://vpce-0a-1b.sqs.us-east-2.vpce.amazonaws.com/000000000000/q", "us-east-2"),
        ("https://sqs.us-east-2.api.aws/000000000000/q", "us-east-2"),
        ("https://queue.amazonaws.com/000000000000/q", None),
        ("http://127.0.0.1:5000/000000000000/sqs.eu-west-1.amazonaws.com", None),
        ("https://sqs.eu-west-1.amazonaws.com.evil.example/000000000000/q", None),
    ],
)
def test_the_region_of_a_queue_is_the_one_that_its_url_names(url: str, region: str | None) -> None:
    assert region_of(url) == region


def test_a_fifo_queue_gets_a_callback_that_is_sent_again_once(biospex: Biospex) -> None:
    url = biospex.fifo_queue()
    address = ReplyAddress(download_id="an id with spaces, ü", updates_queue_url=url)
    callbacks = CallbackQueue(lambda _: biospex.sqs, address)
    callbacks.check()
    for _ in range(2):
        callbacks.send(Result(download_id=1, batch_files=["a-part1.zip"]))
    [message] = biospex.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    assert json.loads(message["Body"])["batchFiles"] == ["a-part1.zip"]


def test_a_missing_callback_queue_is_reported_by_check_and_by_send(
    biospex: Biospex,
) -> None:
    address = ReplyAddress(download_id=1, updates_queue_url=f"{biospex.queue_url}-gone")
    callbacks = CallbackQueue(lambda _: biospex.sqs, address)
    with pytest.raises(CallbackError, match=r"-gone., .* \(.*NonExistentQueue"):
        callbacks.check()
    with pytest.raises(CallbackError, match="its policy lets this service send to it"):
        callbacks.send(Failure(download_id=1, error="No."))


def test_a_message_is_a_dead_letter_after_a_few_rejections(
    biospex: Biospex, queue: TriggerQueue
) -> None:
    dead = with_redrive_policy(biospex, 1000)
    assert queue.has_redrive_policy()
    send(biospex, "junk")
    for _ in range(10):  # as restarts of the listener do
        queue.release(only(queue))
    delivery = only(queue)
    for _ in range(REJECTIONS_BEFORE_DEAD_LETTER - 1):
        assert not queue.reject(delivery)
    assert invisible(biospex) == 1
    assert queue.reject(delivery)
    assert invisible(biospex) == 0
    [letter] = biospex.sqs.receive_message(QueueUrl=dead)["Messages"]
    assert letter["Body"] == delivery.body


def test_without_a_dead_letter_queue_a_message_waits_for_one(
    biospex: Biospex, queue: TriggerQueue
) -> None:
    send(biospex, "junk")
    delivery = only(queue)
    for _ in range(2 * REJECTIONS_BEFORE_DEAD_LETTER):
        assert not queue.reject(delivery)
    assert invisible(biospex) == 1
