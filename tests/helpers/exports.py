"""Exports in S3, as the lanes take them."""

from typing import Any

from splitter.aws.s3 import Bucket
from splitter.batches.lanes import Export
from splitter.messages import Request
from splitter.settings import Settings
from tests.helpers.messages import trigger

KEY = "export/a.zip"


def settings_of(**changes: Any) -> Settings:
    """Return settings with which archives of every size are spliced."""
    return Settings(**{"splice_min_size": 0, **changes})


def export_of(bucket: Bucket, data: bytes, **settings: Any) -> Export:
    """Put an archive into the bucket and return its export."""
    bucket.put(KEY, bytearray(data), {})
    request = Request.parse(trigger(s3Bucket=bucket.name, exportPath=KEY, file="a.zip"))
    return Export(request, bucket.archive(KEY), settings_of(**settings), lambda _: bucket, bucket)
