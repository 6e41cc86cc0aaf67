"""S3 and SQS: the archive and the batches in a bucket, the triggers and callbacks in queues.

Everything here speaks HTTP through boto3 and nothing else; the errors of both services are judged
in ``splitter.errors``.
"""

from splitter.aws.s3 import Bucket
from splitter.aws.sqs import CallbackError, Delivery, TriggerQueue, send_callback

__all__ = ["Bucket", "CallbackError", "Delivery", "TriggerQueue", "send_callback"]
