"""Measures the limits of one task: ``python -m bench.scale``.

Runs the steps that keep a whole export in memory, with 20 thousand, 1 million and 10 million
synthetic rows, each step in its own process:

index      read the central directory of a ZIP
partition  read the manifest, check it against the members, cut it into batches
plan       plan every splice, with its manifest and its central directory

Each step is one thread that never waits, so its processor time is its duration on an idle machine.
The last line has the requests a second of one task to a store on the same machine. The limits of
an export (MAX_MEMBERS, MAX_CELLS, MAX_IN_MEMORY) are disabled.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_DEFLATED, ZipInfo

import boto3

from bench.export import COLUMNS
from devtools.object_store import seaweedfs
from devtools.services import REGION
from splitter.archives import zip_records
from splitter.archives.members import Limits
from splitter.archives.zip_index import MemberSpan, ZipIndex
from splitter.aws.s3 import CLIENT_CONFIG, Bucket
from splitter.batches import splice as splicing
from splitter.batches.assembly import PARALLEL_PARTS
from splitter.manifest import MANIFEST
from splitter.manifest import partition as manifest
from splitter.manifest.partition import Batch

ROWS = (20_000, 1_000_000, 10_000_000)
BATCH_SIZE = 2000
IMAGE = 600_000  # bytes
MODIFIED = (2026, 11, 24, 0, 0, 0)
NO_LIMITS = Limits(*[sys.maxsize] * 5)

READS = 5_000
READ_SIZE = 64 * 1024


def names(count: int) -> Iterator[str]:
    for number in range(count):
        yield f"{number:024x}.jpg"


def members(count: int) -> Iterator[ZipInfo]:
    """The entries of an export's central directory, with the manifest at the end."""
    position = 0
    for name in (*names(count), MANIFEST):
        info = ZipInfo(name, MODIFIED)
        info.compress_type = ZIP_DEFLATED
        info.file_size = info.compress_size = IMAGE
        info.CRC = 0
        info.header_offset = position
        position += IMAGE + 100
        yield info


def index(count: int) -> Callable[[], object]:
    start = (count + 1) * (IMAGE + 100)
    directory = b"".join(zip_records.central_directory(list(members(count)), start))

    def read(position: int, length: int) -> bytes:
        return directory[position - start : position - start + length]

    return lambda: ZipIndex(read, start + len(directory), NO_LIMITS)


def partition(count: int) -> Callable[[], object]:
    cells = ",".join('"free text, of a label"' for _ in COLUMNS[2:])
    written = io.BytesIO()  # a list of rows would need more memory than the step
    written.write(f"{','.join(COLUMNS)}\n".encode())
    for name in names(count):
        written.write(f"{name[:-4]},{name},{cells}\n".encode())
    text = written.getvalue()
    files = {*names(count), MANIFEST}
    return lambda: manifest.partition_export(
        files, lambda _: text, "imageName", BATCH_SIZE, limits=Limits(max_cells=sys.maxsize)
    )


def plan(count: int) -> Callable[[], object]:
    *images, _ = members(count)
    spans = {
        info.filename: MemberSpan(info, info.header_offset, info.header_offset + IMAGE + 100)
        for info in images
    }
    listed = [info.filename for info in images]
    batches = [
        Batch(part, first + 1, min(first + BATCH_SIZE, count), b"x" * 300 * BATCH_SIZE, some)
        for part, first in enumerate(range(0, count, BATCH_SIZE), 1)
        if (some := tuple(listed[first : first + BATCH_SIZE]))
    ]
    return lambda: [splicing.plan_batch(batch, spans, MODIFIED) for batch in batches]


STEPS = {"index": index, "partition": partition, "plan": plan}


def measure(step: str, count: int) -> None:
    """Run one step in this process and print its processor seconds and its peak in bytes.

    If memory is too small, it ends with a MemoryError before the kernel kills a process.
    """
    most = int(0.9 * figure("/proc/meminfo", "MemAvailable"))
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
    run = STEPS[step](count)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc_pid_clear_refs(5)
    started = time.process_time()
    result = run()
    seconds = time.process_time() - started
    print(json.dumps({"seconds": seconds, "peak": figure("/proc/self/status", "VmHWM")}))
    del result


def figure(path: str, name: str) -> int:
    """A value of proc(5) in bytes."""
    lines = dict(line.split(":") for line in Path(path).read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def requests_a_second() -> float:
    """Ranged reads a second by the threads of one task, from a store on this machine."""
    with TemporaryDirectory(prefix="bench-") as directory, seaweedfs(Path(directory)) as endpoint:
        session = boto3.Session("any", "any", region_name=REGION)
        s3 = session.client("s3", endpoint_url=endpoint, config=CLIENT_CONFIG)
        s3.create_bucket(Bucket="scale")
        s3.put_object(Bucket="scale", Key="object", Body=bytes(READ_SIZE * 100))
        bucket = Bucket(s3, "scale")
        etag = bucket.archive("object").etag

        def read(number: int) -> None:
            bucket.read("object", etag, number % 100 * READ_SIZE, READ_SIZE)

        with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
            started = time.perf_counter()
            for _ in pool.map(read, range(READS)):
                pass
            return READS / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--step", choices=STEPS, help="measure it in this process")
    options = parser.parse_args()
    if options.step:
        measure(options.step, options.rows[0])
        return
    print(
        "| rows | step | CPU s | rows a CPU second | MiB at its peak |\n"
        "| ---: | --- | ---: | ---: | ---: |"
    )
    for count in options.rows:
        for step in STEPS:
            command = [sys.executable, "-m", "bench.scale", "--step", step, "--rows", str(count)]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            if done.returncode:
                print(f"| {count:,} | {step} | did not fit into memory | | |", flush=True)
                continue
            found = json.loads(done.stdout)
            print(
                f"| {count:,} | {step} | {found['seconds']:.2f} "
                f"| {count / found['seconds']:,.0f} | {found['peak'] / 2**20:,.0f} |",
                flush=True,
            )
    print(f"\n{requests_a_second():,.0f} requests a second")


if __name__ == "__main__":
    main()
