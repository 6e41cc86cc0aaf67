"""The bucket and the queues of a round."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from devtools.services import create_queues, trigger

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient


class Aws:
    """A bucket with the exports, the trigger queue with their messages, and the callback queue."""

    def __init__(self, s3: "S3Client", sqs: "SQSClient", exports: Sequence[Path]) -> None:
        self._s3 = s3
        self._sqs = sqs
        self._bucket = f"kills-{uuid4()}"
        s3.create_bucket(Bucket=self._bucket)
        self.triggers, self._updates = create_queues(sqs, self._bucket)
        for path in exports:
            s3.upload_file(str(path), self._bucket, f"export/{path.name}")
            body = trigger(0, path, self._updates)
            body |= {"downloadId": path.name, "s3Bucket": self._bucket}
            sqs.send_message(QueueUrl=self.triggers, MessageBody=json.dumps(body))

    def callbacks(self) -> Iterator[tuple[dict[str, Any], float]]:
        """Every callback, with the second at which it was sent."""
        while messages := self._sqs.receive_message(
            QueueUrl=self._updates, AttributeNames=["SentTimestamp"], MaxNumberOfMessages=10
        ).get("Messages"):
            for message in messages:
                handle = message["ReceiptHandle"]
                self._sqs.delete_message(QueueUrl=self._updates, ReceiptHandle=handle)
                yield json.loads(message["Body"]), int(message["Attributes"]["SentTimestamp"]) / 1e3

    def answered(self) -> list[str]:
        """The downloads whose callbacks are in the queue, which stay there."""
        if self._messages(self._updates) == 0:
            return []
        answer = self._sqs.receive_message(
            QueueUrl=self._updates, MaxNumberOfMessages=10, VisibilityTimeout=0
        )
        return [json.loads(message["Body"])["downloadId"] for message in answer["Messages"]]

    def waiting(self) -> int:
        """How many triggers there are, visible or not."""
        return self._messages(self.triggers)

    def dead(self) -> int:
        return self._messages(f"{self.triggers}-dead")

    def uploads(self) -> list[str]:
        """The keys of the incomplete multipart uploads."""
        answer = self._s3.list_multipart_uploads(Bucket=self._bucket)
        return [upload["Key"] for upload in answer.get("Uploads", [])]

    def checksums(self) -> dict[str, str]:
        """The SHA-256 of every object but the exports."""
        found = {}
        for key in self._keys():
            if not key.startswith("export/"):
                body = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"]
                found[key] = hashlib.file_digest(body, "sha256").hexdigest()  # type: ignore[arg-type]
        return found

    def remove(self) -> None:
        """Delete the bucket and what it holds, which gives SeaweedFS the space back."""
        for upload in self._s3.list_multipart_uploads(Bucket=self._bucket).get("Uploads", []):
            self._s3.abort_multipart_upload(
                Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        for key in self._keys():
            self._s3.delete_object(Bucket=self._bucket, Key=key)
        self._s3.delete_bucket(Bucket=self._bucket)

    def _keys(self) -> list[str]:
        listed = self._s3.list_objects_v2(Bucket=self._bucket)
        return [entry["Key"] for entry in listed.get("Contents", [])]

    def _messages(self, queue_url: str) -> int:
        answer = self._sqs.get_queue_attributes(
            QueueUrl=queue_url,
            AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
        )
        return sum(map(int, answer["Attributes"].values()))
