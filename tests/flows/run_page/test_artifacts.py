"""The text of the callback and the one summary; test_finished.py looks at whole pages."""

import json

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient

from flows.run_page.artifacts import callback_markdown, callback_title, publish_failure
from splitter.errors import FAULT, OUT_OF_MEMORY
from splitter.messages import Failure, Result
from splitter.settings import Docs
from tests.helpers.pages import this_run


def test_a_callback_is_shown_as_a_sentence_and_as_the_message() -> None:
    failure = Failure(download_id=7, error="The archive is damaged; export it again.")
    assert callback_title(failure) == f"Sent to BIOSPEX: {failure.error}"
    sentence, _, block = callback_markdown(failure).partition("\n\nThe message:\n\n```json\n")
    assert failure.error in sentence
    assert json.loads(block.removesuffix("\n```")) == failure.model_dump(by_alias=True)
    assert '\n  "error": "The archive' in block
    success = Result(download_id=7, batch_files=["x-part1.zip"])
    assert callback_title(success) == "Sent to BIOSPEX: 1 batch is ready."


@pytest.mark.usefixtures("prefect_api")
def test_a_run_has_one_summary_which_a_later_one_rewrites(prefect: SyncPrefectClient) -> None:
    @flow
    def fail_twice() -> None:
        for problem in (FAULT(cause="KeyError"), OUT_OF_MEMORY()):
            publish_failure(
                None, "No batches:", problem, [], Docs(), has_batches=False, is_tried_again=False
            )

    state = fail_twice(return_state=True)
    [summary] = prefect.read_artifacts(flow_run_filter=this_run(state))
    for text in (summary.description, summary.data):
        assert "ran out of memory" in str(text)
        assert "KeyError" not in str(text)
