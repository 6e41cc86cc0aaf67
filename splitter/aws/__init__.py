"""Calls S3 and SQS. ``splitter.errors`` classifies the errors of both."""

from splitter.aws.s3 import Bucket, StoredObject
from splitter.aws.sqs import CallbackError, CallbackQueue, Delivery, TriggerQueue

__all__ = [
    "Bucket",
    "CallbackError",
    "CallbackQueue",
    "Delivery",
    "StoredObject",
    "TriggerQueue",
]
