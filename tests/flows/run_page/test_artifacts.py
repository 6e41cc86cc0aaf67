"""The text of the callback on the run page; test_finished.py looks at whole pages."""

import json

from flows.run_page.artifacts import callback_markdown, callback_title
from splitter.messages import Failure, Result


def test_a_callback_is_shown_as_a_sentence_and_as_the_message() -> None:
    failure = Failure(download_id=7, error="The archive is damaged; export it again.")
    assert callback_title(failure) == f"Sent to BIOSPEX: {failure.error}"
    sentence, _, block = callback_markdown(failure).partition("\n\nThe message:\n\n```json\n")
    assert failure.error in sentence
    assert json.loads(block.removesuffix("\n```")) == failure.model_dump(by_alias=True)
    assert '\n  "error": "The archive' in block
    success = Result(download_id=7, batch_files=["x-part1.zip"])
    assert callback_title(success) == "Sent to BIOSPEX: 1 batch is ready."
