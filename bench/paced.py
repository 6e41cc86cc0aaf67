"""Measures a lane on a store whose requests wait as S3's do: ``python -m bench.paced``.

``bench.lanes`` shows the cost of processor time; this bench shows the cost of waiting. The store
(``bench/paced_store.py``) answers after 30 ms and gives each connection 85 MB/s, by AWS's
guideline. The export is a sparse file of stored images, 1 MB each, in the order of the rows.

Seconds go from the first request to the last. Dollars are for requests only.
"""

import argparse
import os
import platform
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.cost import DOLLARS_TO_READ, DOLLARS_TO_WRITE
from bench.export import make_sparse_export
from bench.lanes import MAX_BATCH_SIZE, Bench
from bench.paced_store import FIRST_BYTE, RATE, PacedStore, Traffic
from devtools.services import embedded_aws, embedded_prefect

IMAGE = 1_000_000
SIZES = (2, 20, 200)
FREE = {"DELETE"}
READING = {"GET", "HEAD"}


def dollars(traffic: Traffic) -> float:
    """The list price of the requests."""
    return sum(
        count * (DOLLARS_TO_READ if kind in READING else DOLLARS_TO_WRITE)
        for kind, count in traffic.requests.items()
        if kind not in FREE
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="*", default=SIZES)
    parser.add_argument("--strategy", choices=("splice", "extract"), default="splice")
    parser.add_argument("--first-byte", type=float, default=FIRST_BYTE, metavar="SECONDS")
    parser.add_argument("--rate", type=float, default=RATE / 1e6, metavar="MB/S")
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    print(
        f"{1000 * options.first_byte:.0f} ms, {options.rate:.0f} MB/s a connection; "
        f"{os.cpu_count()} cores, {platform.machine()}, {time.strftime('%Y-%m-%d')}\n\n"
        "| | s | flow s | copies at a time | requests at a time | MB read | MB written "
        "| MiB peak | requests | $ |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
        flush=True,
    )
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        aws = stack.enter_context(embedded_aws())
        prefect = stack.enter_context(embedded_prefect(directory))
        store = PacedStore(options.first_byte, options.rate * 1e6)
        endpoint = stack.enter_context(store.served())
        bench = Bench(endpoint, {**aws, **prefect}, directory, MAX_BATCH_SIZE)
        for gigabytes in options.gigabytes:
            archive = directory / f"export-{gigabytes:g}.zip"
            make_sparse_export(archive, round(gigabytes * 1e9 / IMAGE), IMAGE)
            for _ in range(options.repeat):
                store.objects.clear()
                store.add(f"export/{archive.name}", archive)
                store.traffic = traffic = Traffic()
                with TemporaryDirectory(dir=directory) as scratch:
                    found = bench.lane(options.strategy, archive, Path(scratch), "paced")
                if store.uploads:
                    sys.exit(f"{len(store.uploads)} uploads are left.")
                requests = " ".join(f"{n} {kind}" for kind, n in sorted(traffic.requests.items()))
                print(
                    f"| {gigabytes:g} GB, {options.strategy} | {traffic.seconds:.1f} "
                    f"| {found.seconds:.1f} | {traffic.most_copies} | {traffic.most} "
                    f"| {traffic.sent / 1e6:,.1f} | {traffic.received / 1e6:,.1f} "
                    f"| {(found.peak_memory or 0) / 2**20:,.0f} | {requests} "
                    f"| {dollars(traffic):.4f} |",
                    flush=True,
                )
            archive.unlink()


if __name__ == "__main__":
    main()
