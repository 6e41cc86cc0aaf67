"""Small archives, built in memory."""

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping

FILES = {
    "a.jpg": bytes(range(256)) * 4,
    "b.jpg": b"\xff\xd8\xff" + b"b" * 700,
    "manifest.csv": b"imageName\na.jpg\nb.jpg\n",
}
"""An export in small."""


class Unseekable(io.RawIOBase):
    """A stream that only goes forward: what is written to it is in ``getvalue()``."""

    def __init__(self) -> None:
        self._written = io.BytesIO()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        return self._written.write(data)

    def getvalue(self) -> bytes:
        return self._written.getvalue()


def zip_of(
    files: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    compression: int = zipfile.ZIP_DEFLATED,
    stream: io.BytesIO | Unseekable | None = None,
) -> bytes:
    """A ZIP; a ``stream`` that cannot seek makes it one with data descriptors."""
    stream = stream or io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return stream.getvalue()


def tar_of(
    files: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    format: int = tarfile.PAX_FORMAT,
    others: Iterable[tarfile.TarInfo] = (),
) -> bytes:
    """A tar; ``others`` are members without content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
        for info in others:
            archive.addfile(info)
    return stream.getvalue()
