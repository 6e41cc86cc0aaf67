"""Lets threads use the front of a file while others still write its rest."""

from math import inf
from threading import Condition
from typing import Any, Self


class StoppedError(Exception):
    """The bytes that a thread waits for will not come; the error that stopped them is elsewhere."""


class Watermark:
    """How far a file has been written: all bytes before the mark are in place.

    As a context manager, it stops if an error ends the block. Pickled, for another process, it
    stays where it is.
    """

    def __init__(self, position: float = 0) -> None:
        self._position = position
        self._is_stopped = False
        self._changed = Condition()

    def advance(self, position: float) -> None:
        """Move the mark forward.

        Raises:
            StoppedError: if nobody waits for more.
        """
        with self._changed:
            if self._is_stopped:
                raise StoppedError
            self._position = max(self._position, position)
            self._changed.notify_all()

    def finish(self) -> None:
        """Note that the file is complete, and that its user may rely on it."""
        self.advance(inf)

    def stop(self) -> None:
        """Fail the threads that wait, unless the file is complete."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def wait_for(self, position: float = inf) -> None:
        """Wait until all bytes before ``position`` are in place, or until the file is complete.

        Raises:
            StoppedError: if they will not come.
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
"""Of a file that is written."""
