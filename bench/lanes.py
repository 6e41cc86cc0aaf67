"""Measures both lanes beside a floor and a limit: ``make bench GIGABYTES=1.6``.

The ways take turns on this machine, against SeaweedFS, with exports of real JPEGs
(``bench/export.py``):

floor             s5cmd downloads the ZIP and uploads it again
limit             the UploadPartCopy calls of the splice lane's plan, and nothing else
extract ZIP       create_batches with SPLIT_STRATEGY=extract
extract tar.gz    the same of the same images in the old format
splice            create_batches with SPLIT_STRATEGY=splice, images in the order of the rows
splice merged     images in four such runs, as in an export of more than 8,000
splice shuffled   images in random order

Seconds of the lanes are those of the flow run, without the start of Python and Prefect. Peak memory
is that of the largest process. Figures are medians of ``--repeat`` rounds; each round runs every
way, so a slow minute of the machine affects all of them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from uuid import uuid4

import boto3

from bench.export import MEAN_IMAGE, Order
from devtools.object_store import seaweedfs
from devtools.services import REGION, embedded_aws, embedded_prefect, trigger
from splitter.archives.zip_index import ZipIndex
from splitter.aws.s3 import CLIENT_CONFIG, Bucket
from splitter.batches import splice as splicing
from splitter.batches.assembly import PARALLEL_COPIES, CopiedPart
from splitter.manifest import partition as manifest

MAX_BATCH_SIZE, MIN_BATCHES = 2000, 4
"""A small export is cut into 4 batches, so that the order of its images matters."""
SCRIPTS = Path(sysconfig.get_path("scripts"))

Way = Callable[[Path, Path, str], "Measured"]
"""Given an archive, a directory and a bucket that holds the archive."""


@dataclass
class Measured:
    """One run of one way. Bytes are those of the worker; None is not measured."""

    seconds: float
    received: int | None = None
    sent: int | None = None
    peak_memory: int | None = None
    requests: dict[str, int] = field(default_factory=dict)


class Bench:
    """An export in a fresh bucket, and the ways to split it."""

    def __init__(
        self, endpoint: str, environment: Mapping[str, str], directory: Path, batch_size: int
    ) -> None:
        self.directory = directory
        self.batch_size = batch_size
        self.environment = {**os.environ, **environment, "AWS_ENDPOINT_URL_S3": endpoint}
        self.environment |= {"BATCH_SIZE": str(batch_size), "PREFECT_LOGGING_LEVEL": "ERROR"}
        # As the image has them.
        self.environment |= {
            "MALLOC_MMAP_THRESHOLD_": "1048576",
            "MALLOC_TRIM_THRESHOLD_": "2097152",
        }
        keys = (environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
        session = boto3.Session(*keys, region_name=REGION)
        self.s3 = session.client("s3", endpoint_url=endpoint, config=CLIENT_CONFIG)
        sqs = session.client("sqs", endpoint_url=environment["AWS_ENDPOINT_URL"])
        self.updates = sqs.create_queue(QueueName="updates")["QueueUrl"]

    def measure(self, way: Callable[[Path, str], Measured], archive: Path) -> Measured:
        """Split ``archive`` in a bucket of its own, after the disk has written its backlog."""
        bucket = f"bench-{uuid4()}"
        self.s3.create_bucket(Bucket=bucket)
        self.s3.upload_file(
            str(archive),
            bucket,
            f"export/{archive.name}",
            ExtraArgs={"ContentType": "application/octet-stream"},
        )
        os.sync()
        try:
            with TemporaryDirectory(dir=self.directory) as scratch:
                return way(Path(scratch), bucket)
        finally:
            pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            for entry in (entry for page in pages for entry in page.get("Contents", [])):
                self.s3.delete_object(Bucket=bucket, Key=entry["Key"])
            self.s3.delete_bucket(Bucket=bucket)  # which gives the space back

    def floor(self, archive: Path, scratch: Path, bucket: str) -> Measured:
        copy = str(scratch / "copy.zip")
        return self._commands(
            [
                [SCRIPTS / "s5cmd", "cp", f"s3://{bucket}/export/{archive.name}", copy],
                [SCRIPTS / "s5cmd", "cp", copy, f"s3://{bucket}/batch/copy.zip"],
            ]
        )

    def limit(self, archive: Path, scratch: Path, bucket_name: str) -> Measured:
        """The copies alone: plans are made beforehand, uploads are not completed."""
        bucket = Bucket(self.s3, bucket_name)
        key = f"export/{archive.name}"
        source = bucket.archive(key)
        index = ZipIndex(partial(bucket.read, key, source.etag), source.size)
        cut = manifest.partition_export(index.members, index.read, "imageName", self.batch_size)
        plans = splicing.plan(cut, index)
        copies: list[Callable[[], object]] = []
        for batch, parts in enumerate(splicing.parts(plans, bucket, key, source), 1):
            upload = bucket.begin_upload(f"batch/{batch}.zip", {})
            copies += [
                partial(part.send, upload, number)
                for number, part in enumerate(parts, 1)
                if isinstance(part, CopiedPart)
            ]
        started = time.perf_counter()
        with ThreadPoolExecutor(PARALLEL_COPIES) as pool:
            for future in [pool.submit(copy) for copy in copies]:
                future.result()
        return Measured(time.perf_counter() - started, 0, 0, None, {"COPY": len(copies)})

    def lane(self, strategy: str, archive: Path, scratch: Path, bucket: str) -> Measured:
        request = {**trigger(1, archive, self.updates), "s3Bucket": bucket}
        done = subprocess.run(
            [sys.executable, "-m", "bench.measured_export", json.dumps(request)],
            env={
                **self.environment,
                "SPLIT_STRATEGY": strategy,
                "TMPDIR": str(scratch),
                "EFS_PATH": str(scratch),
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])  # after the flow's own line
        if not str(found["state"]).startswith("Completed"):
            raise RuntimeError(f"The {strategy} lane ended {found['state']}.")
        return Measured(**{name: found[name] for name in Measured.__dataclass_fields__})

    def _commands(self, commands: Sequence[Sequence[str | Path]]) -> Measured:
        peak = 0
        started = time.perf_counter()
        for command in commands:
            process = subprocess.Popen(
                command,
                env={
                    **self.environment,
                    "S3_ENDPOINT_URL": self.environment["AWS_ENDPOINT_URL_S3"],
                },
                stdout=subprocess.DEVNULL,
            )
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise RuntimeError(f"{command[0]} ended with {os.waitstatus_to_exitcode(status)}.")
            peak = max(peak, usage.ru_maxrss * 1024)
        return Measured(time.perf_counter() - started, peak_memory=peak)


def typical(rounds: Sequence[Measured]) -> Measured:
    """The round with the median time, and the highest memory of all rounds."""
    middle = sorted(rounds, key=lambda one: one.seconds)[len(rounds) // 2]
    peaks = [one.peak_memory for one in rounds if one.peak_memory is not None]
    return Measured(
        median(one.seconds for one in rounds),
        middle.received,
        middle.sent,
        max(peaks) if peaks else None,
        middle.requests,
    )


def row(name: str, found: Measured, *bases: Measured) -> str:
    """A line of a Markdown table."""
    requests = " ".join(f"{count} {method}" for method, count in sorted(found.requests.items()))
    cells = [
        name,
        f"{found.seconds:.1f}",
        *(f"{found.seconds / base.seconds:.2f}" for base in bases),
        "-" if found.received is None else f"{found.received / 1e6:,.1f}",
        "-" if found.sent is None else f"{found.sent / 1e6:,.1f}",
        "-" if found.peak_memory is None else f"{found.peak_memory / 2**20:,.0f}",
        requests or "-",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.6)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the exports and the store go")
    parser.add_argument("--only", nargs="*", default=[], metavar="WAY", help="beside the floor")
    options = parser.parse_args()
    images = round(options.gigabytes * 1e9 / MEAN_IMAGE)
    batch_size = min(MAX_BATCH_SIZE, -(-images // MIN_BATCHES))
    if options.directory:
        options.directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(TemporaryDirectory(prefix="bench-", dir=options.directory))
        )
        aws = stack.enter_context(embedded_aws())
        prefect = stack.enter_context(embedded_prefect(directory))
        endpoint = stack.enter_context(seaweedfs(directory / "store"))
        bench = Bench(endpoint, {**aws, **prefect}, directory, batch_size)

        @cache
        def export(order: Order, suffix: str = ".zip") -> Path:
            path = directory / f"export-{order}{suffix}"
            # In a process of its own: Linux counts this one's peak of memory to those it starts.
            command = [sys.executable, "-m", "bench.export", str(path), "--order", order]
            subprocess.run([*command, "--images", str(images)], check=True)
            return path

        extract, splice = partial(bench.lane, "extract"), partial(bench.lane, "splice")
        ways: dict[str, tuple[Way, Callable[[], Path]]] = {
            "floor": (bench.floor, partial(export, "sorted")),
            "limit": (bench.limit, partial(export, "sorted")),
            "extract ZIP": (extract, partial(export, "sorted")),
            "extract tar.gz": (extract, partial(export, "sorted", ".tar.gz")),
            "splice": (splice, partial(export, "sorted")),
            "splice merged": (splice, partial(export, "merged")),
            "splice shuffled": (splice, partial(export, "shuffled")),
        }
        wanted = {name for name in ways if name in ("floor", "limit", *(options.only or ways))}
        rounds: dict[str, list[Measured]] = {name: [] for name in ways if name in wanted}
        for number in range(1, options.repeat + 1):
            for name, found in rounds.items():
                way, archive = ways[name]
                found.append(bench.measure(partial(way, archive()), archive()))
                print(f"round {number}, {name}: {found[-1].seconds:.1f} s", file=sys.stderr)

    results = {name: typical(found) for name, found in rounds.items()}
    print(
        f"{options.gigabytes} GB, {images:,} images, batches of {batch_size:,}; "
        f"{os.cpu_count()} cores, {platform.machine()}, {time.strftime('%Y-%m-%d')}; "
        f"medians of {options.repeat}\n\n"
        "| | s | to floor | to limit | MB read | MB written | MiB peak | requests |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    )
    for name, result in results.items():
        print(row(name, result, results["floor"], results["limit"]))


if __name__ == "__main__":
    main()
