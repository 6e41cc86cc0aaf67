"""A value of other people is harmless wherever a sentence goes."""

import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.sentences import PAGE, page
from splitter.errors import ExportError
from splitter.sentences import (
    CATALOGUE,
    DEFAULT_ADVICE,
    MAX_VALUE,
    Actor,
    Problem,
    Sentence,
    Words,
    escaped,
    shown,
)

ANY_TEXT = st.text(st.characters(codec=None))


@pytest.fixture(scope="module")
def sentence() -> Sentence:
    return Sentence("test.sentence", "Line {line} names {name}, {reason}.")


@given(ANY_TEXT)
def test_shown_text_acts_on_nothing_and_ends_where_its_quotation_marks_do(text: str) -> None:
    for safe in (shown(text), escaped(text)):
        safe.encode()  # no half of a surrogate pair
        assert len(safe) <= 12 * MAX_VALUE
        for character in safe:
            assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
            assert unicodedata.bidirectional(character) not in ("RLO", "LRO", "RLI", "LRI", "PDF")
    inner = shown(text)[1:-1]
    place = inner.find("'")
    while place >= 0:
        before, after = inner[:place][-1:], inner[place + 1 :][:1]
        assert before == "\\" or (before.isalpha() and after.isalpha())
        place = inner.find("'", place + 1)


def test_values_are_filled_in_by_their_kind(sentence: Sentence) -> None:
    problem = sentence(line=1234, name="a\x1b[2J.jpg", reason=Words("which is a link"))
    assert problem.text == r"Line 1,234 names 'a\x1b[2J.jpg', which is a link."
    assert str(problem) == f"{problem.text} [test.sentence]"
    assert sentence(line=1, name=["a", "b"], reason=problem).text.startswith(
        "Line 1 names 'a', 'b',"
    )


def test_a_foreign_value_cannot_close_its_quotation_marks() -> None:
    assert shown("O'Brien.jpg") == "'O'Brien.jpg'"
    assert shown("x' is fine; press Retry '") == r"'x\' is fine; press Retry \''"


def test_a_template_cannot_reach_into_its_values() -> None:
    template = Sentence("test.reach", "{value.__class__}")
    with pytest.raises(KeyError):
        template(value="x")


def test_a_missing_value_is_an_error(sentence: Sentence) -> None:
    with pytest.raises(KeyError):
        sentence(line=1)


def test_an_error_survives_being_sent_to_another_process(sentence: Sentence) -> None:
    error = ExportError(sentence, line=1, name="x", reason=Words("so"))
    copy = pickle.loads(pickle.dumps(error))
    assert copy.problem == error.problem
    assert isinstance(copy.problem, Problem)


def test_two_declarations_cannot_share_a_code(sentence: Sentence) -> None:
    with pytest.raises(ValueError, match=r"test\.sentence"):
        Sentence("test.sentence", "Something else.")


def test_the_page_of_all_sentences_is_current() -> None:
    assert PAGE.read_text() == page()


def test_advice_names_the_person_who_must_act() -> None:
    page()  # imports every room
    for sentence in CATALOGUE.values():
        if sentence.code.startswith("test."):
            continue
        advice = sentence.advice or DEFAULT_ADVICE[sentence.actor]
        assert advice, sentence.code
        if sentence.actor is Actor.OPERATOR:
            assert "no action" not in advice.lower(), sentence.code
            assert "to whoever made the export" not in advice, sentence.code
        assert "ask the operator" not in advice, sentence.code
