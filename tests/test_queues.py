import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError

from splitter.messages import Failure, ReplyAddress, Result
from splitter.queues import Delivery, TriggerQueue, send_callback


@pytest.fixture
def queue(sqs: Any, queue_url: str) -> TriggerQueue:
    return TriggerQueue(sqs, queue_url, visibility_timeout=300)


def send(sqs: Any, queue: TriggerQueue, *bodies: str) -> None:
    for body in bodies:
        sqs.send_message(QueueUrl=queue.url, MessageBody=body)


def only(queue: TriggerQueue) -> Delivery:
    (delivery,) = queue.receive(limit=10, wait=0)
    return delivery


def invisible(sqs: Any, queue: TriggerQueue) -> int:
    name = "ApproximateNumberOfMessagesNotVisible"
    answer = sqs.get_queue_attributes(QueueUrl=queue.url, AttributeNames=[name])
    return int(answer["Attributes"][name])


def test_an_empty_queue_gives_nothing(queue: TriggerQueue) -> None:
    assert list(queue.receive(limit=4, wait=0)) == []


def test_a_message_arrives_as_it_was_sent(sqs: Any, queue: TriggerQueue) -> None:
    send(sqs, queue, '{"file": "ü\\n.zip"}')
    assert only(queue).body == '{"file": "ü\\n.zip"}'


@pytest.mark.parametrize(("limit", "received"), [(1, 1), (4, 4), (10, 10), (50, 10)])
def test_no_more_messages_come_than_are_wanted(
    limit: int, received: int, sqs: Any, queue: TriggerQueue
) -> None:
    send(sqs, queue, *map(str, range(12)))
    assert len(list(queue.receive(limit, wait=0))) == received


def test_a_message_that_is_kept_does_not_come_again(sqs: Any, queue: TriggerQueue) -> None:
    send(sqs, queue, "1")
    delivery = only(queue)
    assert queue.keep(delivery)
    assert list(queue.receive(limit=10, wait=0)) == []
    assert invisible(sqs, queue) == 1


def test_a_message_that_is_released_comes_again_at_once(sqs: Any, queue: TriggerQueue) -> None:
    send(sqs, queue, "1")
    first = only(queue)
    assert queue.release(first)
    second = only(queue)
    assert second.message_id == first.message_id
    assert second.receipt_handle != first.receipt_handle


def test_a_message_that_is_deleted_is_gone(sqs: Any, queue: TriggerQueue) -> None:
    send(sqs, queue, "1")
    queue.delete(only(queue))
    assert invisible(sqs, queue) == 0
    assert list(queue.receive(limit=10, wait=0)) == []


def test_a_message_that_is_gone_can_neither_be_kept_nor_released(
    sqs: Any, queue: TriggerQueue
) -> None:
    send(sqs, queue, "1")
    delivery = only(queue)
    assert queue.delete(delivery)
    assert not queue.keep(delivery)
    assert not queue.release(delivery)


def test_a_receipt_handle_that_no_longer_counts_deletes_nothing_and_raises_nothing(
    sqs: Any, queue: TriggerQueue
) -> None:
    send(sqs, queue, "1")
    delivery = only(queue)
    assert not queue.delete(replace(delivery, receipt_handle="expired"))
    assert invisible(sqs, queue) == 1


def test_a_queue_that_is_not_there_is_an_error(sqs: Any, queue: TriggerQueue) -> None:
    gone = TriggerQueue(sqs, queue.url + "-gone", visibility_timeout=300)
    with pytest.raises(ClientError, match="NonExistentQueue"):
        gone.keep(Delivery("id", "body", "handle", 0.0))


def test_whether_a_queue_has_a_redrive_policy_is_told(sqs: Any, queue: TriggerQueue) -> None:
    assert not queue.has_redrive_policy()
    dead = sqs.create_queue(QueueName=f"dead-{uuid4()}")["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]
    policy = {"deadLetterTargetArn": attributes["QueueArn"], "maxReceiveCount": 3}
    sqs.set_queue_attributes(QueueUrl=queue.url, Attributes={"RedrivePolicy": json.dumps(policy)})
    assert queue.has_redrive_policy()


@pytest.mark.parametrize(
    "message",
    [
        Result(download_id=512, batch_files=["a-part1.zip"]),
        Failure(download_id="ü", error="The archive has '\uffff', \x01 and \x00 in a name."),
    ],
    ids=["success", "failure with characters that SQS refuses"],
)
def test_a_callback_arrives_in_the_queue_of_its_request(
    message: Result | Failure, sqs: Any, queue: TriggerQueue
) -> None:
    address = ReplyAddress(download_id=512, updates_queue_url=queue.url)
    message_id = send_callback(sqs, address, message)
    delivery = only(queue)
    assert delivery.message_id == message_id
    assert json.loads(delivery.body) == message.model_dump(by_alias=True)
