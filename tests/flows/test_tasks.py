"""Which failed tasks are retried within their run."""

from typing import Any, cast

import pytest
from botocore.exceptions import ReadTimeoutError
from prefect.states import Failed

from flows.tasks import is_retryable
from splitter.errors import ExportError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(), True),
        (ReadTimeoutError(endpoint_url="https://example.org"), False),
        (ExportError("The export is bad."), False),
    ],
    ids=["reset", "no answer for minutes", "a bad export"],
)
def test_a_task_is_retried_where_that_can_help_soon(error: Exception, expected: bool) -> None:
    assert is_retryable(cast(Any, None), cast(Any, None), Failed(data=error)) is expected
