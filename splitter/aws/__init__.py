"""Calls S3 and SQS. ``splitter.errors`` classifies the errors of both."""

from splitter.aws.s3 import Bucket
from splitter.aws.sqs import CallbackError, Delivery, TriggerQueue, send_callback

__all__ = ["Bucket", "CallbackError", "Delivery", "TriggerQueue", "send_callback"]
