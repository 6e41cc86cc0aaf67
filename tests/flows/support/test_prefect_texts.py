"""The texts of Prefect that this project compares are those of the installed Prefect."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from flows.support import prefect_texts


@pytest.mark.parametrize(
    ("text", "module"),
    [
        (prefect_texts.SERVICE_STOPPED, "prefect.runner._cancellation_manager"),
        (prefect_texts.IN_LINE, "prefect.server.orchestration.core_policy"),
        (prefect_texts.LATE, "prefect.server.schemas.states"),
        (prefect_texts.EXCEPTION_OF_FLOW, "prefect.flow_engine"),
        (prefect_texts.RAISED_ONCE_MORE, "prefect.flow_engine"),
        (prefect_texts.NO_EVENTS_SOCKET, "prefect.events.clients"),
        (prefect_texts.EVENTS_NOT_SENT, "prefect._internal.concurrency.services"),
    ],
)
def test_prefect_still_uses_this_text(text: str, module: str) -> None:
    found = find_spec(module)
    assert found and found.origin
    assert text in Path(found.origin).read_text()
