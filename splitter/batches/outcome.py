"""The outcome of an export; the run page, log, metric and callback are views of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from splitter.messages import Request, Result
from splitter.sentences import Problem
from splitter.wording import count, size

if TYPE_CHECKING:  # it imports pandas, which the listener does not need
    from splitter.manifest import Batch, Partition


@dataclass(frozen=True)
class Outcome:
    """The batches of an export, and how they were made.

    Attributes:
        archive_size: bytes.
        lane: ``splice`` or ``extract``.
        reason: for this lane.
        sizes: bytes of each batch ZIP, in the order of ``parts.batches``.
        warnings: sentences about the request, the archive and the manifest.
        zooniverse: sentences about Zooniverse, for the summary.
        seconds: duration of the split.
    """

    request: Request
    archive_size: int
    lane: str
    reason: Problem
    parts: "Partition"
    sizes: Sequence[int]
    warnings: Sequence[object]
    zooniverse: Sequence[object]
    seconds: float

    @property
    def batches(self) -> "list[Batch]":
        return self.parts.batches

    @property
    def rows(self) -> int:
        return sum(batch.rows for batch in self.batches)

    @property
    def size(self) -> int:
        """Bytes of all batch ZIPs together."""
        return sum(self.sizes)

    @property
    def result(self) -> Result:
        """The callback."""
        return Result.of(self.request, len(self.batches))

    @property
    def all_warnings(self) -> list[object]:
        return [*self.warnings, *self.parts.zooniverse]

    @property
    def summary(self) -> str:
        """``25 rows in 3 batches, 1.2 MB``."""
        batches = count(len(self.batches), "batch", "batches")
        return f"{count(self.rows, 'row')} in {batches}, {size(self.size)}"

    def numbers(self) -> dict[str, float | str]:
        """The fields of the final log line of an export."""
        return {
            "lane": self.lane,
            "reason": self.reason.code,
            "rows": self.rows,
            "batches": len(self.batches),
            "images": len(self.parts.images),
            "archive_bytes": self.archive_size,
            "batch_bytes": self.size,
            "warnings": len(self.all_warnings),
            "seconds": round(self.seconds, 3),
        }


def last_line(end: str, download_id: object, outcome: Outcome | None) -> str:
    """The final log line of an export: a JSON object with its numbers, for CloudWatch and ``jq``.

    The stack's alarm and dashboard read ``exports`` and ``outcome``.

    Args:
        end: the name of its final state.
        outcome: None for a failed export, whose line has no numbers.
    """
    numbers = outcome.numbers() if outcome else {}
    return json.dumps({"outcome": end, "download_id": download_id, "exports": 1, **numbers})
