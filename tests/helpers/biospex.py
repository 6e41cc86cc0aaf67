"""The other side, as the tests need it: what BIOSPEX sends, and what it finds afterwards."""

import io
import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3

from devtools.services import REGION, create_queues, trigger

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.literals import QueueAttributeNameType


@dataclass(frozen=True)
class Biospex:
    """A bucket and queues of its own, in the emulated AWS."""

    s3: "S3Client"
    sqs: "SQSClient"
    bucket: str
    queue_url: str
    """Of the callback queue."""

    @classmethod
    def new(cls) -> "Biospex":
        s3, sqs = boto3.client("s3", region_name=REGION), boto3.client("sqs", region_name=REGION)
        bucket = f"bucket-{uuid4()}"
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        return cls(s3, sqs, bucket, sqs.create_queue(QueueName=f"queue-{uuid4()}")["QueueUrl"])

    # -- the trigger queue

    @cached_property
    def trigger_queue_url(self) -> str:
        """A queue with a redrive policy, made when a test first asks for it."""
        return create_queues(self.sqs, f"test-{uuid4()}")[0]

    def request(self, archive: Path, **changes: Any) -> Any:
        """Put an archive into the bucket; returns the trigger message for it, which is not sent.

        It is ``Any`` because the flow takes it as what came from outside.
        """
        self.s3.upload_file(str(archive), self.bucket, f"export/{archive.name}")
        return {**trigger(512, archive, self.queue_url), "s3Bucket": self.bucket, **changes}

    def address(self, archive: Path) -> str:
        """Put an archive into the bucket; returns where it is, as a person writes it."""
        return f"s3://{self.bucket}/{self.request(archive)['exportPath']}"

    def send(self, *messages: dict[str, Any] | str) -> None:
        """Send trigger messages, or what is none."""
        for message in messages:
            body = message if isinstance(message, str) else json.dumps(message)
            self.sqs.send_message(QueueUrl=self.trigger_queue_url, MessageBody=body)

    def triggers(self) -> tuple[int, int]:
        """How many trigger messages are visible, and how many in flight."""
        return messages(self.sqs, self.trigger_queue_url)

    # -- what comes back

    def callbacks(self) -> list[dict[str, Any]]:
        """Take every message of the callback queue, parsed."""
        bodies = []
        while messages := self.sqs.receive_message(QueueUrl=self.queue_url).get("Messages"):
            for message in messages:
                bodies.append(json.loads(message["Body"]))
                self.sqs.delete_message(
                    QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"]
                )
        return bodies

    def statuses(self) -> list[str]:
        """Take every message of the callback queue; returns what each reports."""
        return [callback["status"] for callback in self.callbacks()]

    def fifo_queue(self) -> str:
        """Make another callback queue, one that keeps the order; returns its URL."""
        made = self.sqs.create_queue(
            QueueName=f"{self.bucket}.fifo", Attributes={"FifoQueue": "true"}
        )
        return made["QueueUrl"]

    def batches(self) -> list[str]:
        """The batch ZIPs in the bucket."""
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix="batch/").get("Contents", [])
        return [entry["Key"].removeprefix("batch/") for entry in found]

    def batch(self, file: str) -> dict[str, bytes]:
        """The members of a batch ZIP by their names."""
        body = self.s3.get_object(Bucket=self.bucket, Key=f"batch/{file}")["Body"].read()
        with zipfile.ZipFile(io.BytesIO(body)) as content:
            assert content.testzip() is None
            return {name: content.read(name) for name in content.namelist()}

    def delete_batch(self, file: str) -> None:
        self.s3.delete_object(Bucket=self.bucket, Key=f"batch/{file}")

    def incomplete_uploads(self) -> list[str]:
        """The keys of multipart uploads that were neither completed nor aborted."""
        found = self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return [upload["Key"] for upload in found]


def messages(sqs: "SQSClient", queue_url: str) -> tuple[int, int]:
    """How many messages the queue holds: visible, and in flight."""
    visible: QueueAttributeNameType = "ApproximateNumberOfMessages"
    in_flight: QueueAttributeNameType = "ApproximateNumberOfMessagesNotVisible"
    names = [visible, in_flight]
    found = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=names)["Attributes"]
    return int(found[visible]), int(found[in_flight])
