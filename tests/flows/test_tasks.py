"""A failed task: its retries, and the tasks behind it."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from botocore.exceptions import ReadTimeoutError
from prefect.logging import disable_run_logger
from prefect.states import Failed

from flows import tasks
from flows.tasks import is_retryable
from splitter.archives.formats import SENT_AS_TEXT
from splitter.batches.assembly import PartPool
from splitter.errors import ExportError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(), True),
        (ReadTimeoutError(endpoint_url="https://example.org"), False),
        (ExportError(SENT_AS_TEXT), False),
    ],
    ids=["reset", "no answer for minutes", "a bad export"],
)
def test_a_task_is_retried_where_that_can_help_soon(error: Exception, expected: bool) -> None:
    assert is_retryable(cast(Any, None), cast(Any, None), Failed(data=error)) is expected


@pytest.mark.parametrize(
    ("error", "begun"),
    [(ReadTimeoutError(endpoint_url="https://example.org"), 1), (ConnectionResetError(), 3)],
    ids=["no answer for minutes", "reset"],
)
def test_no_batch_begins_after_one_that_s3_did_not_answer(
    error: Exception, begun: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins: list[str] = []

    def assemble(bucket: Any, key: str, *_: Any) -> None:
        begins.append(key)
        raise error

    monkeypatch.setattr(tasks, "assemble", assemble)
    batch = SimpleNamespace(part=1, metadata=lambda etag: {})
    export = SimpleNamespace(
        bucket=None,
        source=SimpleNamespace(etag="x"),
        request=SimpleNamespace(batch_key=lambda part: f"batch/{part}.zip"),
    )
    with PartPool() as pool, disable_run_logger():
        for _ in range(3):
            with pytest.raises(type(error)):
                tasks._put_batch(cast(Any, batch), [], cast(Any, export), pool)
    assert len(begins) == begun
