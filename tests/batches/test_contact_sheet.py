"""The picture of an export on its run page."""

import io
import subprocess
import zlib

import pytest
from PIL import Image

from splitter.batches.contact_sheet import (
    HEIGHT,
    MAX_BYTES,
    THUMBNAILS,
    WIDTH,
    contact_sheet,
    spread,
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is slow to start a process; its processor time stays limited."""
    monkeypatch.setattr("splitter.batches.contact_sheet.SECONDS", 60)


def image(colour: str, size: tuple[int, int] = (300, 400), format: str = "JPEG") -> bytes:
    written = io.BytesIO()
    Image.new("RGB", size, colour).save(written, format)
    return written.getvalue()


def noise(size: tuple[int, int] = (300, 400)) -> bytes:
    written = io.BytesIO()
    Image.effect_noise(size, 90).save(written, "JPEG", quality=95)
    return written.getvalue()


def colours(sheet: bytes, number: int) -> list[tuple[int, int, int]]:
    with Image.open(io.BytesIO(sheet)) as opened:
        assert opened.size == (WIDTH * number, HEIGHT)
        pixels = [opened.getpixel((WIDTH * n + WIDTH // 2, HEIGHT // 4)) for n in range(number)]
    return [tuple(round(part / 64) for part in pixel) for pixel in pixels]  # type: ignore[union-attr,misc]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, []), (1, [0]), (6, [0, 1, 2, 3, 4, 5]), (7, [0, 1, 2, 3, 4, 6]), (101, range(0, 101, 20))],
)
def test_the_images_shown_are_spread_from_the_first_to_the_last(
    count: int, expected: list[int]
) -> None:
    assert spread([str(number) for number in range(count)]) == [str(n) for n in expected]


def test_thumbnails_are_in_order_and_a_grey_tile_replaces_other_files() -> None:
    files = {
        "a": image("red"),
        "b": image("blue", (4000, 300), "PNG"),
        "c": b"<html>404 Not Found</html>",
        "d": b"",
        "e": image("red")[:200],
        "f": image("lime", (200, 300), "GIF"),
    }
    sheet = contact_sheet(list(files), files.__getitem__)
    grey = (4, 4, 4)
    found = colours(sheet, len(files))
    assert found[0] == (4, 0, 0)
    assert found[2:5] == [grey] * 3
    assert found[5] == grey  # only the decoders of JPEG and PNG are given foreign bytes


def test_a_sheet_of_noise_is_still_small() -> None:
    assert len(contact_sheet(list("abcdef"), lambda _: noise())) <= MAX_BYTES
    assert THUMBNAILS == 6


def many_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated 4,000 times; each is a pass over the image."""
    written = io.BytesIO()
    Image.new("RGB", (4000, 4000), "red").save(written, "JPEG", progressive=True)
    data = written.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 4000 + data[-2:]


def claims(width: int, height: int) -> bytes:
    """A PNG whose header claims this size."""
    data = image("red", (1, 1), "PNG")
    header = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4) + data[33:]


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(many_scans(), id="4,000 scans"),
        pytest.param(image("red", (13_000, 13_000)), id="169 megapixels"),
        pytest.param(claims(50_000, 50_000), id="a PNG that claims to be large"),
        pytest.param(claims(6_000, 6_000), id="a PNG with too little in it"),
        pytest.param(None, id="many bytes"),
    ],
)
def test_a_tile_replaces_an_image_that_is_costly_to_decode(
    hostile: bytes | None,
) -> None:
    files = {"a": image("red"), "b": hostile, "c": image("red")}
    assert colours(contact_sheet(list(files), files.__getitem__), 3) == [
        (4, 0, 0),
        (4, 4, 4),
        (4, 0, 0),
    ]


def test_drawing_stops_at_its_limits_of_time_and_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("splitter.batches.contact_sheet.SECONDS", 0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        contact_sheet(["a"], lambda _: image("red"))


def test_the_memory_limit_is_enough_for_the_largest_png() -> None:
    large = image("red", (6_300, 6_300), "PNG")
    assert colours(contact_sheet(["a"], lambda _: large), 1) == [(4, 0, 0)]
