"""The plan of an export: batches, requests, bytes and seconds; nothing is written.

A ZIP is planned to the byte, from its index and manifest. A tar cannot be planned, because its
content is known only when it has been unpacked.
"""

from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path

from splitter import zooniverse
from splitter.archives import Contents
from splitter.aws.s3 import DOWNLOAD_PART_SIZE
from splitter.batches import splice as splicing
from splitter.batches import zip as zipping
from splitter.batches.assembly import CopiedPart, Part
from splitter.batches.lanes import Export, Splice, choose_lane
from splitter.settings import Settings

# Bytes a second, from docs/performance.md, none measured on AWS: copies on a store that waits as
# S3 does, and an extract on a store that shares two cores with it.
COPIED_IN_S3 = 4_000_000_000
EXTRACTED = 100_000_000
START = 2
"""Seconds that do not grow with the archive."""


def plan(export: Export, settings: Settings) -> Iterator[str]:
    """Lines for a person: the lane, each batch, requests, bytes and seconds.

    Raises:
        ExportError: an export that a run would refuse too; the images themselves are not read.
    """
    request, size = export.request, export.source.size
    lane = choose_lane(export, settings)
    yield (
        f"s3://{request.s3_bucket}/{request.export_path}, {size:,} bytes\n"
        f"Lane: {lane.name}, {lane.reason.text}"
    )
    if not lane.index or not lane.parts:
        yield "Its batches are known only when it has been unpacked."
        return
    cut = zooniverse.inspect(lane.parts, lane.index)
    if isinstance(lane, Splice):
        plans = splicing.plan(cut, lane.index)
        parts: list[Sequence[Part]] = [
            *splicing.parts(plans, export.bucket, request.export_path, export.source)
        ]
        reads = splicing.reads(plans)
        gets, received = len(reads), sum(window.size for window in reads)
    else:
        parts = [*zipping.parts(cut, Contents.expected(lane.index, Path()))]
        gets, received = -(-size // DOWNLOAD_PART_SIZE), size
    yield f"\n{'part':>5} {'rows':>15} {'images':>7} {'bytes':>15} {'copied':>7} {'sent':>5}"
    for batch, pieces in zip(cut.batches, parts, strict=True):
        total = sum(piece.size for piece in pieces)
        copies = sum(isinstance(piece, CopiedPart) for piece in pieces)
        yield (
            f"{batch.part:>5} {f'{batch.first_row:,}-{batch.last_row:,}':>15} "
            f"{len(batch.images):>7,} {total:>15,} {copies:>7} {len(pieces) - copies:>5}"
        )
    pieces = [piece for batch in parts for piece in batch]
    copied = sum(piece.size for piece in pieces if isinstance(piece, CopiedPart))
    sent = sum(piece.size for piece in pieces) - copied
    seconds = ceil(START + copied / COPIED_IN_S3 + (received + sent) / 2 / EXTRACTED)
    uploads = sum(2 for batch in parts if len(batch) > 1 or isinstance(batch[0], CopiedPart))
    yield (
        f"\n{len(cut.batches):,} batches, {len(cut.unlisted):,} files in no row\n"
        f"Requests: {gets + 2 * len(parts) + uploads + len(pieces):,}, and a few for the archive\n"
        f"Bytes: {copied:,} copied inside S3, {received:,} received, {sent:,} sent\n"
        f"Expect some {seconds:,} s of work, by measurements on two cores, not on AWS"
    )
    yield "\n".join(map(str, ("", *cut.warnings, "Zooniverse:", *zooniverse.section(cut))))
