"""What a splice asks of S3, from its plan: requests, bytes through the worker, and dollars.

python -m bench.cost

No store is needed: the plan is data. Prices are S3 Standard's list prices in us-east-2
(https://aws.amazon.com/s3/pricing/), dollars per request; storage and transfer within the region
are not in them.
"""

import random
from zipfile import ZIP_DEFLATED, ZipInfo

from bench.export import Order
from flows.splitter import splicing
from flows.splitter.manifest import Batch
from flows.splitter.splicing import Cost
from flows.splitter.zip_index import Extent

MEAN_IMAGE = 600_000  # bytes
BATCH_SIZE = 2000
SIZES = (2, 20, 200)  # GB
DOLLARS_TO_WRITE = 0.005 / 1000  # PUT, COPY, POST
DOLLARS_TO_READ = 0.0004 / 1000  # GET, HEAD
MODIFIED = (2026, 11, 24, 0, 0, 0)


def cost_of(gigabytes: int, order: Order) -> tuple[int, Cost]:
    """The number of images of a synthetic export, and what its splice takes."""
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
        members[name] = Extent(info, start, end)
    plans = []
    for part, first in enumerate(range(0, count, BATCH_SIZE), 1):
        images = tuple(names[first : first + BATCH_SIZE])
        manifest = b"x" * 300 * len(images)
        batch = Batch(part, first + 1, first + len(images), manifest, images)
        plans.append(splicing.plan_batch(batch, members, MODIFIED))
    return count, splicing.cost(plans)


def main() -> None:
    print(
        "| export | images | COPY | PUT | POST | GET | HEAD | GB read | $ | $ per 1,000 images |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    orders: tuple[Order, ...] = ("sorted", "merged", "shuffled")
    for order in orders:
        for gigabytes in SIZES:
            count, cost = cost_of(gigabytes, order)
            dollars = (cost.copies + cost.puts + cost.posts) * DOLLARS_TO_WRITE
            dollars += (cost.gets + cost.heads) * DOLLARS_TO_READ
            counts = (count, cost.copies, cost.puts, cost.posts, cost.gets, cost.heads)
            print(
                f"| {gigabytes} GB, {order} | "
                + " | ".join(f"{number:,}" for number in counts)
                + f" | {cost.bytes_read / 1e9:,.1f} | {dollars:.4f} "
                f"| {dollars / count * 1000:.6f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
