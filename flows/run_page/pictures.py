"""Thumbnails of a few images of an export, for its run page."""

import threading
import time
from concurrent.futures import Future

from flows.run_page import artifacts
from splitter.archives import Contents, ZipIndex
from splitter.batches.contact_sheet import MAX_IMAGE_BYTES, SECONDS, contact_sheet, spread
from splitter.manifest import Partition


class Pictures:
    """A contact sheet, drawn by a thread while the batches are made.

    No callback waits for it: the run publishes it afterwards, if it is ready within ``SECONDS`` of
    its start.
    """

    def __init__(self, parts: Partition, files: Contents | ZipIndex) -> None:
        """Start to draw."""
        self._files = files
        self._members = parts.images
        self._names = spread([image for batch in parts.batches for image in batch.images])
        self._deadline = time.monotonic() + SECONDS
        self._sheet: Future[bytes] = Future()
        # A daemon: a read from S3 that hangs does not keep the process alive.
        threading.Thread(target=self._draw, name="pictures", daemon=True).start()

    def publish(self) -> None:
        """Attach the contact sheet to the current flow run.

        Raises:
            TimeoutError: if it takes too long; also whatever reading or drawing raised.
        """
        sheet = self._sheet.result(max(0.0, self._deadline - time.monotonic()))
        artifacts.publish_pictures(self._names, sheet)

    def _draw(self) -> None:
        try:
            self._sheet.set_result(contact_sheet(self._names, self._read))
        except Exception as error:
            self._sheet.set_exception(error)

    def _read(self, image: str) -> bytes | None:
        """The bytes of an image; None if it is too large for a thumbnail."""
        name = self._members[image]
        if isinstance(self._files, Contents):
            size = self._files.members[name].size
        else:
            size = self._files.members[name].info.file_size
        return self._files.read(name) if size <= MAX_IMAGE_BYTES else None
