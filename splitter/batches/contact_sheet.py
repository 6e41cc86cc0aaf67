"""A few of an export's images, small and side by side: whether these are sheets or error pages."""

import io
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageOps

THUMBNAILS = 6
WIDTH, HEIGHT = 150, 200
"""Pixels of one; herbarium sheets stand upright."""

MAX_BYTES = 30_000
"""Of the sheet: as a data URI a third more."""
QUALITIES = (70, 50, 30, 15)

MAX_PIXELS = 40_000_000
"""Of an image that has to be decoded in full, at three or four bytes each."""


def spread(names: Sequence[str], number: int = THUMBNAILS) -> list[str]:
    """``number`` of the names, evenly spread from the first to the last; all, if they are fewer."""
    if len(names) <= number:
        return list(names)
    return [names[index * (len(names) - 1) // (number - 1)] for index in range(number)]


def contact_sheet(names: Sequence[str], read: Callable[[str], bytes]) -> bytes:
    """A JPEG with a thumbnail of each image, in order; what is no image is a tile that says so.

    Args:
        read: gives the bytes of an image.

    Raises:
        whatever ``read`` raises.
    """
    sheet = Image.new("RGB", (WIDTH * max(1, len(names)), HEIGHT), "white")
    for position, name in enumerate(names):
        sheet.paste(_thumbnail(read(name)), (position * WIDTH, 0))
    for quality in QUALITIES:
        written = io.BytesIO()
        sheet.save(written, "JPEG", quality=quality, optimize=True)
        if written.tell() <= MAX_BYTES:
            break
    return written.getvalue()


def _thumbnail(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "GIF", "TIFF", "WEBP")) as image:
            image.draft("RGB", (WIDTH, HEIGHT))  # a JPEG is decoded at an eighth of its size
            if image.width * image.height > MAX_PIXELS:
                return _tile("too large\nfor a picture")
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # Pillow's readers raise what they like
        return _tile("not an image" if data else "empty")
    picture.thumbnail((WIDTH - 4, HEIGHT - 4))
    tile = _tile("")
    tile.paste(picture, ((WIDTH - picture.width) // 2, (HEIGHT - picture.height) // 2))
    return tile


def _tile(text: str) -> Image.Image:
    tile = Image.new("RGB", (WIDTH, HEIGHT), "white" if not text else "#e5e5e5")
    ImageDraw.Draw(tile).text((WIDTH // 2, HEIGHT // 2), text, "#b00020", anchor="mm", font_size=16)
    return tile
