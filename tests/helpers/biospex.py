"""BIOSPEX, as the tests need it: sends triggers, reads callbacks and batches."""

import io
import json
import zipfile
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3

from devtools.services import REGION, create_queues, trigger

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.literals import QueueAttributeNameType


@cache
def client(service: Any) -> Any:
    """A client of the emulated AWS, for all tests of this process."""
    return boto3.client(service, region_name=REGION)


@dataclass(frozen=True)
class Biospex:
    """A bucket and queues that no other test uses, in the emulated AWS."""

    s3: "S3Client"
    sqs: "SQSClient"
    bucket: str

    @classmethod
    def new(cls) -> "Biospex":
        s3, bucket = client("s3"), f"bucket-{uuid4()}"
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        return cls(s3, client("sqs"), bucket)

    # -- the queues, created on first use

    @cached_property
    def queue_url(self) -> str:
        """The callback queue."""
        return self.sqs.create_queue(QueueName=f"queue-{uuid4()}")["QueueUrl"]

    @cached_property
    def trigger_queue_url(self) -> str:
        """The trigger queue, with a redrive policy."""
        return create_queues(self.sqs, f"test-{uuid4()}")[0]

    def request(self, archive: Path, **changes: Any) -> Any:
        """Put an archive into the bucket; return its trigger message without sending it.

        The type is ``Any``, as the flow takes unchecked input.
        """
        self.s3.upload_file(str(archive), self.bucket, f"export/{archive.name}")
        return {**trigger(512, archive, self.queue_url), "s3Bucket": self.bucket, **changes}

    def address(self, archive: Path) -> str:
        """Put an archive into the bucket; return its s3:// address."""
        return f"s3://{self.bucket}/{self.request(archive)['exportPath']}"

    def send(self, *messages: dict[str, Any] | str) -> None:
        """Send trigger messages, or texts that are none."""
        for message in messages:
            body = message if isinstance(message, str) else json.dumps(message)
            self.sqs.send_message(QueueUrl=self.trigger_queue_url, MessageBody=body)

    def triggers(self) -> tuple[int, int]:
        """Return the numbers of trigger messages that are visible and in flight."""
        return messages(self.sqs, self.trigger_queue_url)

    # -- what comes back

    def callbacks(self) -> list[dict[str, Any]]:
        """Receive, delete and parse every message of the callback queue."""
        bodies = []
        while messages := self.sqs.receive_message(QueueUrl=self.queue_url).get("Messages"):
            for message in messages:
                bodies.append(json.loads(message["Body"]))
                self.sqs.delete_message(
                    QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"]
                )
        return bodies

    def statuses(self) -> list[str]:
        """Receive and delete every message of the callback queue; return their statuses."""
        return [callback["status"] for callback in self.callbacks()]

    def fifo_queue(self) -> str:
        """Create a FIFO callback queue; return its URL."""
        made = self.sqs.create_queue(
            QueueName=f"{self.bucket}.fifo", Attributes={"FifoQueue": "true"}
        )
        return made["QueueUrl"]

    def batches(self) -> list[str]:
        """Return the names of the batch ZIPs in the bucket."""
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix="batch/").get("Contents", [])
        return [entry["Key"].removeprefix("batch/") for entry in found]

    def batch(self, file: str) -> dict[str, bytes]:
        """Return the members of a batch ZIP by name."""
        body = self.s3.get_object(Bucket=self.bucket, Key=f"batch/{file}")["Body"].read()
        with zipfile.ZipFile(io.BytesIO(body)) as content:
            assert content.testzip() is None
            return {name: content.read(name) for name in content.namelist()}

    def delete_batch(self, file: str) -> None:
        self.s3.delete_object(Bucket=self.bucket, Key=f"batch/{file}")

    def incomplete_uploads(self) -> list[str]:
        """Return the keys of multipart uploads that were neither completed nor aborted."""
        found = self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return [upload["Key"] for upload in found]


def messages(sqs: "SQSClient", queue_url: str) -> tuple[int, int]:
    """Return the numbers of messages in the queue that are visible and in flight."""
    visible: QueueAttributeNameType = "ApproximateNumberOfMessages"
    in_flight: QueueAttributeNameType = "ApproximateNumberOfMessagesNotVisible"
    names = [visible, in_flight]
    found = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=names)["Attributes"]
    return int(found[visible]), int(found[in_flight])
