"""A ZIP in the extract lane: batches are sent while it arrives, and appear once it is checked."""

import errno
import json
import os
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from flows import split
from flows.create_batches import create_batches
from splitter.aws import s3
from splitter.aws.s3 import MIB, Bucket, MultipartUpload
from splitter.errors import ExportError, SetupError
from tests.helpers.biospex import Biospex

pytestmark = [
    pytest.mark.usefixtures("prefect_api", "aws", "workspace", "extract_in_two_batches"),
    pytest.mark.slow,
]

IMAGES = {f"{n:02}.jpg": random.Random(n).randbytes(MIB) for n in range(14)}
HELD = 10 * MIB
"""Where the range of the archive begins that arrives last."""

NAMES = ["e-part1.zip", "e-part2.zip"]


@pytest.fixture
def extract_in_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLIT_STRATEGY", "extract")
    monkeypatch.setenv("BATCH_SIZE", "7")
    monkeypatch.setattr(s3, "DOWNLOAD_PART_SIZE", MIB)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "e.zip"
    with zipfile.ZipFile(path, "w") as export:
        for name, data in IMAGES.items():
            export.writestr(name, data)
        export.writestr("manifest.csv", "\n".join(["imageName", *IMAGES, ""]))
    return path


Held = Callable[[Callable[[], object]], None]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """Holds one range of the download back until a part has been sent, and then does something."""
    sent = Event()
    upload_part, pieces = MultipartUpload.upload_part, Bucket.pieces

    def noted(upload: MultipartUpload, number: int, content: bytearray) -> object:
        part = upload_part(upload, number, content)
        sent.set()
        return part

    def hold(then: Callable[[], object]) -> None:
        def late(bucket: Bucket, key: str, etag: str, start: int, length: int) -> Iterator[bytes]:
            if (start, length) == (HELD, MIB):
                assert sent.wait(60)
                then()
            return pieces(bucket, key, etag, start, length)

        monkeypatch.setattr(MultipartUpload, "upload_part", noted)
        monkeypatch.setattr(Bucket, "pieces", late)

    return hold


def nothing_is_left(biospex: Biospex, workspace: Path) -> bool:
    return not any((biospex.batches(), biospex.incomplete_uploads(), *workspace.iterdir()))


def test_parts_are_sent_before_the_archive_is_there(
    archive: Path, biospex: Biospex, held: Held
) -> None:
    seen: list[list[str]] = []
    held(lambda: seen.append(biospex.batches()))
    assert create_batches(biospex.request(archive)).batch_files == NAMES
    assert seen == [[]]
    first, second = map(biospex.batch, NAMES)
    assert first.pop("manifest.csv") != second.pop("manifest.csv")
    assert list((first | second).items()) == list(IMAGES.items())
    assert biospex.incomplete_uploads() == []


def test_a_part_without_images_is_sent_before_the_first_file_is_unpacked(
    tmp_path: Path, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = "".join(f"{name},{chr(97 + n % 7) * MIB}\n" for n, name in enumerate(IMAGES))
    path = tmp_path / "e.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as export:
        for name in IMAGES:
            export.writestr(name, b"image")
        export.writestr("manifest.csv", f"imageName,note\n{notes}")
    upload_part, fill_store = MultipartUpload.upload_part, split.fill_store
    sent = Event()

    def noted(upload: MultipartUpload, number: int, content: bytearray) -> object:
        sent.set()
        return upload_part(upload, number, content)

    def late(*arguments: Any) -> None:
        assert sent.wait(60)
        fill_store(*arguments)

    monkeypatch.setattr(MultipartUpload, "upload_part", noted)
    monkeypatch.setattr(split, "fill_store", late)
    assert create_batches(biospex.request(path)).batch_files == NAMES


def test_the_archive_is_removed_before_batches_appear(
    archive: Path, biospex: Biospex, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = MultipartUpload.complete
    left: list[str] = []

    def noted(upload: MultipartUpload, parts: Any) -> None:
        left.extend(path.name for path in workspace.glob("*/*"))
        complete(upload, parts)

    monkeypatch.setattr(MultipartUpload, "complete", noted)
    create_batches(biospex.request(archive))
    assert left == ["images"] * 2


def test_an_error_before_the_download_ends_the_run(
    archive: Path, biospex: Biospex, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(split, "fill_store", full)
    with pytest.raises(SetupError, match="ran out of space"):
        create_batches(biospex.request(archive))
    assert biospex.statuses() == ["failed"]
    assert nothing_is_left(biospex, workspace)


def test_the_end_of_the_archive_may_arrive_after_its_files(
    archive: Path, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(archive, "a") as export:
        end = export.start_dir
    monkeypatch.setattr(
        s3, "DOWNLOAD_PART_SIZE", end
    )  # so that the directory is a range of its own
    pieces = Bucket.pieces

    def late(bucket: Bucket, key: str, etag: str, start: int, length: int) -> Iterator[bytes]:
        if start == end:
            time.sleep(2)
        return pieces(bucket, key, etag, start, length)

    monkeypatch.setattr(Bucket, "pieces", late)
    assert create_batches(biospex.request(archive)).batch_files == NAMES


def test_damage_found_after_parts_were_sent_leaves_nothing(
    archive: Path, biospex: Biospex, workspace: Path, held: Held
) -> None:
    data = bytearray(archive.read_bytes())
    data[13 * MIB + MIB // 2] ^= 1
    archive.write_bytes(data)
    held(lambda: None)
    with pytest.raises(ExportError, match=r"'13\.jpg' cannot be unpacked"):
        create_batches(biospex.request(archive))
    assert biospex.statuses() == ["failed"]
    assert nothing_is_left(biospex, workspace)


def test_an_archive_replaced_after_parts_were_sent_leaves_nothing(
    archive: Path, biospex: Biospex, workspace: Path, held: Held
) -> None:
    request = biospex.request(archive)
    held(
        lambda: biospex.s3.put_object(
            Bucket=biospex.bucket, Key=request["exportPath"], Body=b"another"
        )
    )
    with pytest.raises(ExportError, match="was replaced or deleted while it was read"):
        create_batches(request)
    assert biospex.statuses() == ["failed"]
    assert nothing_is_left(biospex, workspace)


def test_a_killed_run_leaves_uploads_only_until_the_next_attempt(
    archive: Path, biospex: Biospex, workspace: Path
) -> None:
    request = biospex.request(archive)
    child = [sys.executable, "-m", "tests.flows.test_arriving", json.dumps(request)]
    assert subprocess.run(child, timeout=180, check=False).returncode == 9
    assert biospex.incomplete_uploads()
    assert biospex.batches() == []
    create_batches(request)
    assert biospex.batches() == NAMES
    assert biospex.incomplete_uploads() == []
    assert list(workspace.iterdir()) == []


def main(request: str) -> None:
    """The child: a run that dies as soon as it has sent a part."""
    upload_part = MultipartUpload.upload_part

    def last(upload: MultipartUpload, number: int, content: bytearray) -> None:
        upload_part(upload, number, content)
        os._exit(9)

    MultipartUpload.upload_part = last  # type: ignore[method-assign, assignment]
    create_batches(json.loads(request))


if __name__ == "__main__":
    main(sys.argv[1])
