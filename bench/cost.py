"""Calculates the price of a split from its plan and the measured rates: ``python -m bench.cost``.

Needs no store. Uses the list prices of us-east-2 below, without storage and transfer in the region.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zipfile import ZIP_DEFLATED, ZipInfo

from bench.export import Order
from splitter.archives.zip_index import MemberSpan
from splitter.aws.s3 import DOWNLOAD_PART_SIZE
from splitter.batches import splice as splicing
from splitter.batches.plan import COPIED_IN_S3, EXTRACTED, START
from splitter.batches.splice import S3_LIMITS, PartLimits, Plan, Uploaded
from splitter.batches.zip import PART_SIZE
from splitter.manifest.partition import Batch

MEAN_IMAGE = 600_000  # bytes
BATCH_SIZE = 2000
SIZES = (2, 20, 200)  # GB

# https://aws.amazon.com/s3/pricing/, S3 Standard, dollars a request
DOLLARS_TO_WRITE = 0.005 / 1000  # PUT, COPY, POST
DOLLARS_TO_READ = 0.0004 / 1000  # GET, HEAD
# https://aws.amazon.com/fargate/pricing/, Linux on x86, dollars an hour
FARGATE_CPU, FARGATE_GB, FARGATE_DISK_GB = 0.04048, 0.004445, 0.000111
FREE_DISK_GB = 20
LARGEST_DISK_GB = 200
# https://aws.amazon.com/efs/pricing/, elastic throughput, dollars a GB
EFS_READ, EFS_WRITTEN = 0.03, 0.06
# https://aws.amazon.com/lambda/pricing/, x86, dollars a GB and second
LAMBDA_GB = 0.0000166667
LAMBDA_SECONDS, LAMBDA_DISK_GB = 900, 10

TASK_CPUS, TASK_GB = 2, 4
TASK_START = 60  # seconds, an estimate: image pull, Python and Prefect
SPACE = 2.1  # bytes of disk for each byte of the archive, as in splitter/workspace.py
MODIFIED = (2026, 11, 24, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Cost:
    """The S3 requests of plans, and the bytes that pass through this machine.

    Attributes:
        copies: UploadPartCopy.
        puts: UploadPart and PutObject.
        posts: CreateMultipartUpload and CompleteMultipartUpload.
        gets: ranged GetObject.
        heads: HeadObject, one before and one after each batch.
        bytes_read, bytes_sent: of GETs and PUTs.
    """

    copies: int
    puts: int
    posts: int
    gets: int
    heads: int
    bytes_read: int
    bytes_sent: int


def requests(plans: Sequence[Plan], limits: PartLimits = S3_LIMITS) -> Cost:
    """The requests of ``plans``, if no batch exists yet."""
    uploads = [part for plan in plans for part in plan.parts if isinstance(part, Uploaded)]
    windows = splicing.reads(plans, limits)
    return Cost(
        copies=sum(len(plan.parts) for plan in plans) - len(uploads),
        puts=len(uploads),
        posts=2 * sum(len(plan.parts) > 1 for plan in plans),
        gets=len(windows),
        heads=2 * len(plans),
        bytes_read=sum(window.size for window in windows),
        bytes_sent=sum(upload.size for upload in uploads),
    )


def cost_of(gigabytes: int, order: Order) -> tuple[int, Cost]:
    """The number of images of a synthetic export and the requests of its splice."""
    count = round(gigabytes * 1e9 / MEAN_IMAGE)
    names = [f"{number:024x}.jpg" for number in range(count)]
    rng = random.Random(gigabytes)
    placed = names[:]
    if order == "shuffled":
        rng.shuffle(placed)
    elif order == "merged":
        placed = [name for run in range(4) for name in names[run::4]]
    members = {}
    end = 0
    for name in placed:
        info = ZipInfo(name, MODIFIED)
        info.compress_type = ZIP_DEFLATED
        info.file_size = info.compress_size = round(MEAN_IMAGE * rng.uniform(1 / 3, 5 / 3))
        info.CRC = 0
        info.header_offset = end
        start, end = end, end + info.compress_size + 100
        members[name] = MemberSpan(info, start, end)
    plans = []
    for part, first in enumerate(range(0, count, BATCH_SIZE), 1):
        images = tuple(names[first : first + BATCH_SIZE])
        manifest = b"x" * 300 * len(images)
        batch = Batch(part, first + 1, first + len(images), manifest, images)
        plans.append(splicing.plan_batch(batch, members, MODIFIED))
    return count, requests(plans)


def compute(seconds: float, disk_gb: float = 0) -> float:
    """Dollars of a Fargate task, including its start."""
    hourly = TASK_CPUS * FARGATE_CPU + TASK_GB * FARGATE_GB
    hourly += max(0, disk_gb - FREE_DISK_GB) * FARGATE_DISK_GB
    return (TASK_START + seconds) / 3600 * hourly


def ways_to_split(gigabytes: int) -> Iterator[str]:
    """A row of a Markdown table for each way to split an export."""

    def line(way: str, seconds: float, machine: float, efs: float, requests: float) -> str:
        return (
            f"| {gigabytes} GB, {way} | {seconds:,.0f} | {machine:.4f} | {efs:.2f} "
            f"| {requests:.4f} | {machine + efs + requests:.4f} |"
        )

    _, cost = cost_of(gigabytes, "sorted")
    seconds = START + gigabytes * 1e9 / COPIED_IN_S3
    yield line("splice", seconds, compute(seconds), 0, dollars(cost))

    parts, ranges = gigabytes * 1e9 / PART_SIZE, gigabytes * 1e9 / DOWNLOAD_PART_SIZE
    requests = parts * DOLLARS_TO_WRITE + ranges * DOLLARS_TO_READ
    seconds = START + gigabytes * 1e9 / EXTRACTED
    disk = gigabytes * SPACE
    if disk <= LARGEST_DISK_GB:
        yield line("extract, task's disk", seconds, compute(seconds, disk), 0, requests)
    # The archive and its images are each written once and read once.
    efs = 2 * gigabytes * (EFS_READ + EFS_WRITTEN)
    yield line("extract, EFS", seconds, compute(seconds), efs, requests)
    if disk <= LAMBDA_DISK_GB and seconds <= LAMBDA_SECONDS:
        yield line("the Lambda, at the same speed", seconds, seconds * 5 * LAMBDA_GB, 0, requests)
    else:
        yield f"| {gigabytes} GB, the Lambda | impossible: {LAMBDA_DISK_GB} GB of disk | | | | |"


def dollars(cost: Cost) -> float:
    written = cost.copies + cost.puts + cost.posts
    return written * DOLLARS_TO_WRITE + (cost.gets + cost.heads) * DOLLARS_TO_READ


def main() -> None:
    print(
        "| export | s of work | compute, $ | EFS, $ | S3 requests, $ | together, $ |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for gigabytes in SIZES:
        for line in ways_to_split(gigabytes):
            print(line, flush=True)
    print(
        "\n"
        "| export | images | COPY | PUT | POST | GET | HEAD | GB read | $ | $ per 1,000 images |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    orders: tuple[Order, ...] = ("sorted", "merged", "shuffled")
    for order in orders:
        for gigabytes in SIZES:
            count, cost = cost_of(gigabytes, order)
            price = dollars(cost)
            counts = (count, cost.copies, cost.puts, cost.posts, cost.gets, cost.heads)
            print(
                f"| {gigabytes} GB, {order} | "
                + " | ".join(f"{number:,}" for number in counts)
                + f" | {cost.bytes_read / 1e9:,.1f} | {price:.4f} "
                f"| {price / count * 1000:.6f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
