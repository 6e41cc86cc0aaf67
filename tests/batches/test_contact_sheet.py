"""The picture of an export on its run page."""

import io

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


def test_thumbnails_stand_in_order_and_what_is_no_image_is_a_grey_tile() -> None:
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
    assert found[5] == (0, 4, 0)


def test_a_sheet_of_noise_is_still_small() -> None:
    assert len(contact_sheet(list("abcdef"), lambda _: noise())) <= MAX_BYTES
    assert THUMBNAILS == 6
