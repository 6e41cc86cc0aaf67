"""Lets threads read the front of a file while others write the rest."""

from math import inf
from threading import Condition
from typing import Any, Self


class StoppedError(Exception):
    """The awaited bytes will not come, because another thread failed."""


class Watermark:
    """The position in a file before which all bytes are written.

    As a context manager, it stops if an error ends the block. A pickled copy for another process
    does not move.
    """

    def __init__(self, position: float = 0) -> None:
        self._position = position
        self._is_stopped = False
        self._changed = Condition()

    def advance(self, position: float) -> None:
        """Move the mark forward.

        Raises:
            StoppedError: if it was stopped.
        """
        with self._changed:
            if self._is_stopped:
                raise StoppedError
            self._position = max(self._position, position)
            self._changed.notify_all()

    def finish(self) -> None:
        """Mark the file as complete."""
        self.advance(inf)

    def stop(self) -> None:
        """Raise ``StoppedError`` in waiting threads, unless the file is complete."""
        with self._changed:
            self._is_stopped = self._position < inf
            self._changed.notify_all()

    def wait_for(self, position: float = inf) -> None:
        """Wait for all bytes before ``position``, by default for the complete file.

        Raises:
            StoppedError: if it is stopped before.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or self._position >= position)
            if self._position < position:
                raise StoppedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self.stop()

    def __reduce__(self) -> Any:
        return Watermark, (self._position,)


COMPLETE = Watermark(inf)
"""The watermark of a complete file."""
