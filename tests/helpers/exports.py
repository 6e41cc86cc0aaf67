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


def export_of(bucket: Bucket, data: bytes) -> Export:
    """Put an archive into the bucket and return its export."""
    bucket.put(KEY, bytearray(data), {})
    return export_in(bucket)


def export_in(bucket: Bucket) -> Export:
    """The export whose archive is in the bucket."""
    request = Request.parse(trigger(s3Bucket=bucket.name, exportPath=KEY, file="a.zip"))
    return Export(request, lambda _: bucket)
