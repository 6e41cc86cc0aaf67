"""A disk that fills, and memory that runs out, in the middle of a step: in a process of its own."""

import json
import os
import random
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from flows.create_batches import create_batches
from flows.splitter.workspace import sweep
from tests.test_create_batches import batch, keys

MIB = 1024 * 1024
DISK = 12 * MIB
LARGEST_FILE = 4 * MIB

# A file system of its own where the kernel lets an ordinary user mount one; elsewhere a limit on
# the size of files, which is another error of the same family.
SMALL_DISK = f"""
mount -t tmpfs -o size={DISK} tmpfs "$TMPDIR" || ulimit -f {LARGEST_FILE // 512}
exec "$@"
"""


def main(scarce: str, *requests: str) -> None:
    """The child: carries out requests, and says what became of each and what was left of it."""
    directory = Path(os.environ["TMPDIR"])
    for request in map(json.loads, requests):
        if request["file"] == "download.zip":
            Thread(target=fill, args=(directory,), daemon=True).start()
        if scarce == "memory":
            status = Path("/proc/self/status").read_text()
            used = int(status.partition("VmData:")[2].split()[0]) * 1024
            most = used + request["downloadId"] * MIB
            resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
        name = create_batches(request, return_state=True).name
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        left = [path.name for path in directory.iterdir() if path.name != "fill"]
        print(json.dumps([name, left]))


def fill(directory: Path) -> None:
    """Be another program, that takes all the room as soon as a run has begun."""
    while not any(directory.glob("biospex-batch-*")):
        time.sleep(0.01)
    with suppress(OSError), (directory / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def split(scarce: str, requests: list[Any], *wrapper: str) -> list[tuple[str, list[str]]]:
    """Carry out requests under a limit; returns each one's state and the files it left."""
    child = [
        sys.executable,
        "-m",
        "tests.test_scarce_resources",
        scarce,
        *map(json.dumps, requests),
    ]
    done = subprocess.run(
        [*wrapper, *child], stdout=subprocess.PIPE, text=True, timeout=180, check=True
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines() if line[:2] == '["']


def export(path: Path, images: dict[str, bytes], rows: int) -> Path:
    names = list(images)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in images.items():
            archive.writestr(name, data)
        lines = (f"{names[row % len(names)]},{row}" for row in range(rows))
        archive.writestr("manifest.csv", "\n".join(["imageName,row", *lines, ""]))
    return path


@pytest.mark.usefixtures("prefect_api", "aws")
def test_a_disk_that_fills_during_a_step_is_answered_with_its_name(
    tmp_path: Path,
    s3: Any,
    bucket_name: str,
    request_for: Callable[..., Any],
    received: Callable[[], list[Any]],
    workspace: Path,
) -> None:
    noise = random.Random(1).randbytes(5 * MIB)
    requests = [
        request_for(export(tmp_path / "extract.zip", {"a.jpg": bytes(2 * DISK)}, 1)),
        request_for(export(tmp_path / "download.zip", {"a.jpg": noise}, 1)),
    ]
    namespace = ["unshare", "-rm"]
    may = subprocess.run([*namespace, "true"], capture_output=True).returncode == 0
    wrapper = [*(namespace if may else []), "sh", "-c", SMALL_DISK, "sh"]

    assert split("disk", requests, *wrapper) == [("Failed", []), ("Failed", [])]
    sentences = [message["error"] for message in received()]
    assert len(sentences) == 2
    for sentence in sentences:
        assert f"{workspace} became full" in sentence
        assert "tell the operator" in sentence
    assert keys(s3, bucket_name) == []
    assert s3.list_multipart_uploads(Bucket=bucket_name).get("Uploads", []) == []


@pytest.mark.usefixtures("prefect_api", "aws")
def test_memory_that_runs_out_at_any_step_is_answered_and_leaves_no_half_a_batch(
    tmp_path: Path,
    s3: Any,
    bucket_name: str,
    request_for: Callable[..., Any],
    received: Callable[[], list[Any]],
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = {f"{n:02}.jpg": random.Random(n).randbytes(MIB) for n in range(20)}
    archive = export(tmp_path / "e.zip", images, 50_000)
    monkeypatch.setenv("BATCH_SIZE", "25000")
    limits = (80, 100, 500)  # MiB beside an idle process: less than a run takes, and enough
    requests = [request_for(archive, downloadId=limit, file=f"{limit}.zip") for limit in limits]

    # Each in a process of its own: one whose memory ran out is good for nothing more.
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda request: split("memory", [request]), requests))

    callbacks = received()
    for limit, [(state, _)] in zip(limits, ended, strict=True):
        files = [key for key in keys(s3, bucket_name) if key.startswith(f"batch/{limit}-part")]
        said = [message for message in callbacks if message["downloadId"] == limit]
        assert [message["status"] for message in said] == [
            "success" if state == "Completed" else "failed"
        ]
        assert len(files) == 2 or state == "Failed"
        for file in files:  # whole or absent
            assert len(batch(s3, bucket_name, file.removeprefix("batch/"))) == 21
    assert [state for [(state, _)] in ended] == ["Failed", "Failed", "Completed"]
    for lock in workspace.glob("*.lock"):
        os.utime(lock, (0, 0))
    sweep(workspace)
    assert list(workspace.iterdir()) == []


if __name__ == "__main__":
    main(*sys.argv[1:])
