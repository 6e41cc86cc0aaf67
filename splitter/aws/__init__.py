"""Calls S3 and SQS. ``splitter.errors`` classifies the errors of both."""

from splitter.aws.s3 import Bucket, StoredObject
from splitter.aws.sqs import CallbackError, Delivery, TriggerQueue, send_callback

__all__ = [
    "Bucket",
    "CallbackError",
    "Delivery",
    "StoredObject",
    "TriggerQueue",
    "send_callback",
]
