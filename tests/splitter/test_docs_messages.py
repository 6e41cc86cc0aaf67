"""docs/messages.md holds the sentences that the code has."""

import re

from cli.messages import PAGE, page


def test_the_page_of_all_sentences_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python -m cli.messages"


def test_what_differs_from_case_to_case_is_named_in_words() -> None:
    assert [line for line in page().splitlines() if "…" in line.replace("export/….zip", "")] == []


def test_no_sentence_speaks_of_what_only_we_know() -> None:
    to_people = page().partition("## The batch service itself")[0]
    ours = r"\b(member|splice|part number|central directory|[A-Z]+_[A-Z_]+)\b"
    told = [line for line in to_people.splitlines() if line.startswith("- ")]
    assert [line for line in told if re.search(ours, line)] == []
