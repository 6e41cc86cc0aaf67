"""Splits an archive with the plain functions, without Prefect."""

from pathlib import Path
from typing import Any

from splitter import zooniverse
from splitter.archives import extract as archive
from splitter.aws.s3 import Bucket
from splitter.batches import splice as splicing
from splitter.batches.assembly import PartPool, assemble
from splitter.batches.lanes import Export, Extract, Splice, choose_lane, partition
from splitter.batches.zip import BatchZip
from splitter.manifest.partition import Partition
from splitter.messages import Request
from splitter.settings import Settings


def split(
    bucket: Bucket, path: Path, strategy: Any, directory: Path
) -> tuple[Splice | Extract, Partition, list[bytes]]:
    """Split an archive that is in the bucket under ``export/``.

    Returns:
        Its lane, its batches with the findings about images, and their ZIPs.
    """
    settings = Settings(batch_size=5, split_strategy=strategy, splice_min_size=0)
    key = f"export/{path.name}"
    request = Request.model_validate(
        {
            "downloadId": 1,
            "file": path.name,
            "exportPath": key,
            "totalSize": path.stat().st_size,
            "s3Bucket": bucket.name,
            "updatesQueueUrl": "https://sqs.us-east-2.amazonaws.com/000000000000/updates",
        }
    )
    export = Export(request, lambda _: bucket)
    lane = choose_lane(export, settings)
    if isinstance(lane, Splice):
        return lane, zooniverse.inspect(lane.parts, lane.index), _splice(export, lane)
    bucket.download(key, export.source, directory / "archive", lambda _: None)
    contents = archive.extract(directory / "archive", directory / "store", limits=settings.limits)
    parts = partition(contents, settings)
    images = {name: contents.members[file] for name, file in parts.images.items()}
    modified = contents.members[parts.manifest].modified
    zips = [BatchZip(batch, images, contents.store, modified) for batch in parts.batches]
    return (
        lane,
        zooniverse.inspect(parts, contents),
        [bytes(made.read(0, made.size)) for made in zips],
    )


def _splice(export: Export, lane: Splice) -> list[bytes]:
    bucket = export.bucket
    plans = splicing.plan(lane.parts, lane.index)
    parts = splicing.parts(plans, bucket, export.request.export_path, export.source)
    made = []
    with PartPool(senders=4) as pool:
        for batch, pieces in zip(lane.parts.batches, parts, strict=True):
            key = export.request.batch_key(batch.part)
            assemble(bucket, key, pieces, {}, pool)
            splicing.verify(bucket, key, batch)
            found = bucket.archive(key)
            made.append(bytes(bucket.read(key, found.etag, 0, found.size)))
    return made
