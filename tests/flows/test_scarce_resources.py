"""A disk that fills, and memory that runs out, in the middle of a step: in a process of its own."""

import gzip
import json
import os
import random
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from flows.create_batches import create_batches
from splitter.workspace import sweep
from tests.helpers.archives import tar_of
from tests.helpers.biospex import Biospex

MIB = 1024 * 1024
DISK = 12 * MIB
LARGEST_FILE = 4 * MIB

# A file system of its own where the kernel lets an ordinary user mount one; elsewhere a limit on
# the size of files, which is another error of the same family.
SMALL_DISK = f"""
mount -t tmpfs -o size={DISK} tmpfs "$TMPDIR" || ulimit -f {LARGEST_FILE // 512}
exec "$@"
"""


def main(*requests: str) -> None:
    """The child: carries out requests, and says what became of each and what was left of it."""
    directory = Path(os.environ["TMPDIR"])
    for request in map(json.loads, requests):
        if request["file"] == "download.zip":
            Thread(target=fill, args=(directory,), daemon=True).start()
        name = create_batches(request, return_state=True).name
        left = [path.name for path in directory.iterdir() if path.name != "fill"]
        print(json.dumps([name, left]))


def fill(directory: Path) -> None:
    """Be another program, that takes all the room as soon as a run has begun."""
    while not any(directory.glob("biospex-batch-*")):
        time.sleep(0.01)
    with suppress(OSError), (directory / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def split(requests: list[Any], *wrapper: str) -> list[tuple[str, list[str]]]:
    """Carry out requests in the child; returns each one's state and the files it left."""
    child = [sys.executable, "-m", "tests.flows.test_scarce_resources", *map(json.dumps, requests)]
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
def test_a_full_disk_is_named_in_the_failure(
    tmp_path: Path, biospex: Biospex, workspace: Path
) -> None:
    noise = random.Random(1).randbytes(5 * MIB)
    # A tar does not say in front how much it unpacks to.
    tar = tmp_path / "extract.tar.gz"
    files = {"a.jpg": bytes(2 * DISK), "manifest.csv": b"imageName\na.jpg\n"}
    tar.write_bytes(gzip.compress(tar_of(files)))
    requests = [
        biospex.request(tar),
        biospex.request(export(tmp_path / "download.zip", {"a.jpg": noise}, 1)),
    ]
    namespace = ["unshare", "-rm"]
    may = subprocess.run([*namespace, "true"], capture_output=True).returncode == 0
    wrapper = [*(namespace if may else []), "sh", "-c", SMALL_DISK, "sh"]

    assert split(requests, *wrapper) == [("Needs operator", []), ("Needs operator", [])]
    sentences = [message["error"] for message in biospex.callbacks()]
    assert len(sentences) == 2
    for sentence in sentences:
        assert f"{workspace} ran out of space" in sentence
        assert "tell the operator" in sentence
    assert biospex.batches() == []
    assert biospex.incomplete_uploads() == []


WITH_LITTLE_MEMORY = """
import os, resource, sys
from pathlib import Path
from splitter.archives import extract as archive
from splitter.manifest import partition as manifest
from splitter.batches.zip import BatchZip
from splitter.errors import explain
from splitter.workspace import run_directory

path, root, *steps = sys.argv[1:]
path, root = Path(path), Path(root)
# A process for each step, so that each has the same memory, from one that has imported all.
step = next((each for each in steps if not os.fork()), None)
if not step:
    sys.exit(any(os.wait()[1] for _ in steps))

def limit():
    used = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + 6 * 2**20, resource.RLIM_INFINITY))

try:
    with run_directory(root) as directory:
        if step == "extract":
            limit()
        contents = archive.extract(path, directory / "images")
        if step == "partition":
            limit()
        parts = manifest.partition_export(contents.members, contents.read, "imageName", 10**6)
        if step == "zip":
            limit()
        batch = BatchZip(parts.batches[0], contents.members, contents.store, (2026, 1, 1, 0, 0, 0))
        at_once = [part.content() for part in batch.parts()]
except (MemoryError, RuntimeError) as error:
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
    print(type(error).__name__, step, explain(error))
"""


def test_a_step_without_memory_ends_in_a_sentence_and_leaves_no_file(tmp_path: Path) -> None:
    images = {f"{n:02}.jpg": random.Random(n).randbytes(MIB) for n in range(20)}
    archive = export(tmp_path / "e.zip", images, 100_000)
    root = tmp_path / "root"
    root.mkdir()
    steps = ["extract", "partition", "zip"]
    child = [sys.executable, "-c", WITH_LITTLE_MEMORY, str(archive), str(root), *steps]
    done = subprocess.run(child, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Python's threads cannot start: it has no word of its own for this lack of memory.
    words = {"MemoryError": "ran out of memory", "RuntimeError": "tell the operator"}
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert sorted(step for _, step, _ in lines) == steps
    for kind, _, sentence in lines:
        assert words[kind] in sentence
    sweep(root)  # as the next run does: without memory even a directory may not be removable
    assert list(root.iterdir()) == []


if __name__ == "__main__":
    main(*sys.argv[1:])
