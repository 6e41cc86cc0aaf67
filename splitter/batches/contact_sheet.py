"""A contact sheet: thumbnails of a few images of an export, to tell specimens from error pages.

Hostile images can take minutes and gigabytes to decode. So a child process without credentials
decodes them, with limits of time and memory. This file is also the program of that process.
"""

import io
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from PIL import Image, ImageDraw, ImageOps

THUMBNAILS = 6
WIDTH, HEIGHT = 150, 200
"""Pixels of a thumbnail; herbarium sheets are taller than wide."""

MAX_BYTES = 30_000
"""Of the sheet; as a data URI it has a third more."""
QUALITIES = (70, 50, 30, 15)

MAX_IMAGE_BYTES = 8 * 1024**2
MAX_PIXELS = 40_000_000
"""Of an image, by its header; a pixel takes three or four bytes."""

MAX_SCANS = 8
"""Of a JPEG: one for each component, and some of a preview; each is one pass over the image."""

SECONDS = 5
"""Time limit of the process, and of a run that waits for the sheet."""
MEMORY = 512 * 1024**2
"""Address space of the process."""

NOT_DRAWN = (b"GIF8", b"II*\0", b"MM\0*", b"RIFF")


def spread(names: Sequence[str], number: int = THUMBNAILS) -> list[str]:
    """``number`` names, evenly spread from the first to the last; all names if there are fewer."""
    if len(names) <= number:
        return list(names)
    return [names[index * (len(names) - 1) // (number - 1)] for index in range(number)]


def contact_sheet(names: Sequence[str], read: Callable[[str], bytes | None]) -> bytes:
    """A JPEG with a thumbnail of each image, in order; tiles with a text replace other files.

    Args:
        read: returns the bytes of an image, or None if it has more than ``MAX_IMAGE_BYTES``; any
            thread may call it.

    Raises:
        TimeoutExpired: if it takes longer than ``SECONDS``.
        CalledProcessError: if the process died, for example at its memory limit.
        Exception: any that ``read`` raises.
    """
    with ThreadPoolExecutor(THUMBNAILS) as pool:
        images = pickle.dumps(list(pool.map(read, names)))
    program = [sys.executable, "-I", __file__]
    drawn = subprocess.run(  # noqa: S603 - this program, without foreign arguments
        program, input=images, capture_output=True, env={}, timeout=SECONDS, check=True
    )
    return drawn.stdout


def draw(images: Sequence[bytes | None]) -> bytes:
    """The sheet, drawn in this process."""
    sheet = Image.new("RGB", (WIDTH * max(1, len(images)), HEIGHT), "white")
    for position, data in enumerate(images):
        sheet.paste(_thumbnail(data), (position * WIDTH, 0))
    for quality in QUALITIES:
        written = io.BytesIO()
        sheet.save(written, "JPEG", quality=quality, optimize=True)
        if written.tell() <= MAX_BYTES:
            break
    return written.getvalue()


def _thumbnail(data: bytes | None) -> Image.Image:
    if data is None:
        return _tile("too large\nfor a picture")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            # Compared before draft, which changes the size.
            if image.width * image.height > MAX_PIXELS:
                return _tile("too large\nfor a picture")
            # Within the compressed data, 0xFF is followed by 0.
            if image.info.get("progressive") or data.count(b"\xff\xda") > MAX_SCANS:
                return _tile("not drawn:\nprogressive")
            image.draft("RGB", (WIDTH, HEIGHT))  # decodes a JPEG at an eighth of its size
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # Pillow's readers document no exceptions
        if data.startswith(NOT_DRAWN):
            return _tile("not drawn:\nno JPEG or PNG")
        return _tile("not an image" if data else "empty")
    picture.thumbnail((WIDTH - 4, HEIGHT - 4))
    tile = _tile("")
    tile.paste(picture, ((WIDTH - picture.width) // 2, (HEIGHT - picture.height) // 2))
    return tile


def _tile(text: str) -> Image.Image:
    tile = Image.new("RGB", (WIDTH, HEIGHT), "white" if not text else "#e5e5e5")
    ImageDraw.Draw(tile).text((WIDTH // 2, HEIGHT // 2), text, "#b00020", anchor="mm", font_size=16)
    return tile


def main() -> None:
    """Read images from the standard input and write the sheet to the standard output."""
    for limit, value in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, SECONDS)):
        with suppress(ValueError, OSError):  # macOS has no limit of address space
            resource.setrlimit(limit, (value, value))
    images = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by contact_sheet
    sys.stdout.buffer.write(draw(images))


if __name__ == "__main__":
    main()
