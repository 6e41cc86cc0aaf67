"""What both lanes take, beside the floor, the limit and the shell: ``make bench GIGABYTES=2.4``.

In turn, on this machine, against SeaweedFS:

a  floor    s5cmd downloads the export and uploads it again
b  limit    the UploadPartCopy calls of the splice lane's plan, and nothing else
c  shell    aws s3 cp, unzip, zip -0 by batch, aws s3 cp
d  extract  create_batches with SPLIT_STRATEGY=extract
e  splice   create_batches with SPLIT_STRATEGY=splice

Seconds of d and e are the flow run's own; the start of Python and Prefect is not in them. Peak
memory is that of the largest process. A second table has the splice lane on a sorted export, on one
merged from four, and on a shuffled one. Figures are the medians of ``--repeat`` rounds.
"""

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from uuid import uuid4

import boto3

from bench.export import Order, make_export
from bench.object_store import seaweedfs
from cli.services import REGION, embedded_aws, embedded_prefect, trigger
from splitter import manifest, splicing
from splitter.assembly import PARALLEL_PARTS, CopiedPart
from splitter.storage import CLIENT_CONFIG, Bucket
from splitter.zip_index import ZipIndex, ranged_file

MEAN_IMAGE = 300_000  # bytes; 8,000 images are 2.4 GB
BATCH_SIZE = 2000
SCRIPTS = Path(sysconfig.get_path("scripts"))


@dataclass
class Measured:
    """One way to split an export, once. Bytes are those of the worker; None is not measured."""

    seconds: float
    received: int | None = None
    sent: int | None = None
    peak_memory: int | None = None
    requests: dict[str, int] = field(default_factory=dict)


class Bench:
    """An export in a fresh bucket, and the ways to split it."""

    def __init__(self, endpoint: str, environment: Mapping[str, str], directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, **environment, "AWS_ENDPOINT_URL_S3": endpoint}
        self.environment |= {"BATCH_SIZE": str(BATCH_SIZE), "PREFECT_LOGGING_LEVEL": "ERROR"}
        keys = (environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
        session = boto3.Session(*keys, region_name=REGION)
        self.s3 = session.client("s3", endpoint_url=endpoint, config=CLIENT_CONFIG)
        sqs = session.client("sqs", endpoint_url=environment["AWS_ENDPOINT_URL"])
        self.updates = sqs.create_queue(QueueName="updates")["QueueUrl"]

    def measure(self, way: Callable[[Path, str], Measured], archive: Path) -> Measured:
        """Split ``archive`` in a bucket of its own, on a machine that has written all it has to."""
        bucket = f"bench-{uuid4()}"
        self.s3.create_bucket(Bucket=bucket)
        self.s3.upload_file(
            str(archive),
            bucket,
            f"export/{archive.name}",
            ExtraArgs={"ContentType": "application/zip"},
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
        """The copies alone: the batches' plans are made beforehand, the uploads never completed."""
        bucket = Bucket(self.s3, bucket_name)
        key = f"export/{archive.name}"
        source = bucket.archive(key)
        index = ZipIndex(ranged_file(partial(bucket.read, key, source.etag), source.size))
        cut = manifest.partition_export(index.members, index.read, "imageName", BATCH_SIZE)
        modified = index.members[cut.manifest].info.date_time
        copies: list[Callable[[], object]] = []
        for batch in cut.batches:
            upload = bucket.begin_upload(f"batch/{batch.part}.zip", {})
            plan = splicing.plan_batch(batch, index.members, modified)
            parts = splicing.parts(plan, bucket, key, source)
            copies += [
                partial(part.send, upload, number)
                for number, part in enumerate(parts, 1)
                if isinstance(part, CopiedPart)
            ]
        started = time.perf_counter()
        with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
            for future in [pool.submit(copy) for copy in copies]:
                future.result()
        return Measured(time.perf_counter() - started, 0, 0, None, {"COPY": len(copies)})

    def shell(self, archive: Path, scratch: Path, bucket: str) -> Measured:
        """A person's way. The batches' lists of files are made beforehand and cost nothing here."""
        images = scratch / "images"
        aws: list[str | Path] = [SCRIPTS / "aws", "s3", "cp", "--only-show-errors"]
        commands: list[list[str | Path]] = [
            [*aws, f"s3://{bucket}/export/{archive.name}", scratch / "export.zip"],
            ["unzip", "-q", scratch / "export.zip", "-d", images],
        ]
        for part, names in enumerate(_batches(archive), 1):
            batch = scratch / f"part{part}.zip"
            listed = scratch / f"part{part}.txt"
            listed.write_text("\n".join(["manifest.csv", *names]))
            commands += [
                ["sh", "-c", f"cd {images} && zip -0 -q -@ {batch} < {listed}"],
                [*aws, batch, f"s3://{bucket}/batch/part{part}.zip"],
            ]
        return self._commands(commands)

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
        found = json.loads(done.stdout)
        if found["state"] != "Completed":
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


def _batches(archive: Path) -> Iterator[list[str]]:
    rows = subprocess.run(["unzip", "-p", archive, "manifest.csv"], stdout=subprocess.PIPE)
    names = [row["imageName"] for row in csv.DictReader(rows.stdout.decode().splitlines(True))]
    for start in range(0, len(names), BATCH_SIZE):
        yield names[start : start + BATCH_SIZE]


def typical(rounds: Sequence[Measured]) -> Measured:
    """The round with the median time, with the highest memory of all."""
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the exports and the store go")
    options = parser.parse_args()
    images = round(options.gigabytes * 1e9 / MEAN_IMAGE)
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(TemporaryDirectory(prefix="bench-", dir=options.directory))
        )
        aws = stack.enter_context(embedded_aws())
        prefect = stack.enter_context(embedded_prefect(directory))
        endpoint = stack.enter_context(seaweedfs(directory / "store"))
        bench = Bench(endpoint, {**aws, **prefect}, directory)

        def export(order: Order) -> Path:
            path = directory / f"export-{order}.zip"
            make_export(path, images, images * MEAN_IMAGE, order=order)
            return path

        def run(way: Callable[[Path, Path, str], Measured], archive: Path) -> Measured:
            rounds = [bench.measure(partial(way, archive), archive) for _ in range(options.repeat)]
            return typical(rounds)

        archive = export("sorted")
        print(
            f"{options.gigabytes} GB, {images:,} images, batches of {BATCH_SIZE}; "
            f"{os.cpu_count()} cores, {platform.machine()}, {time.strftime('%Y-%m-%d')}; "
            f"medians of {options.repeat}\n\n"
            "| | s | to floor | to limit | MB read | MB written | MiB peak | requests |\n"
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
            flush=True,
        )
        floor = run(bench.floor, archive)
        limit = run(bench.limit, archive)
        print(row("a floor", floor, floor, limit), flush=True)
        print(row("b limit", limit, floor, limit), flush=True)
        if shutil.which("zip") and shutil.which("unzip"):
            print(row("c shell", run(bench.shell, archive), floor, limit), flush=True)
        print(row("d extract", run(partial(bench.lane, "extract"), archive), floor, limit))
        spliced = run(partial(bench.lane, "splice"), archive)
        print(row("e splice", spliced, floor, limit), flush=True)
        print(
            "\n| splice of | s | MB read | MB written | MiB peak | requests |\n"
            "| --- | ---: | ---: | ---: | ---: | --- |"
        )
        print(row("sorted", spliced))
        orders: tuple[Order, ...] = ("merged", "shuffled")
        for order in orders:
            print(row(order, run(partial(bench.lane, "splice"), export(order))), flush=True)


if __name__ == "__main__":
    main()
