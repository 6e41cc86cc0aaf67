"""The lines of the log of a run: those that it leaves out, and their fields."""

import logging
import sys

import pytest

from flows.support.log_context import Labels, label
from flows.support.prefect_texts import RAISED_ONCE_MORE
from splitter.archives.formats import SENT_AS_TEXT
from splitter.errors import ExportError, SetupError
from splitter.workspace import RAN_OUT


def passed(error: Exception, message: str, level: int) -> logging.LogRecord | None:
    try:
        raise error
    except Exception:
        record = logging.LogRecord("x", level, "x.py", 1, message, (), sys.exc_info())
    return record if Labels().filter(record) else None


@pytest.mark.parametrize(
    "error", [ExportError(SENT_AS_TEXT), SetupError(RAN_OUT, path="/tmp", cause="")]
)
def test_a_fault_that_its_sentence_explains_has_no_traceback_above_debug(error: Exception) -> None:
    assert passed(error, RAISED_ONCE_MORE, logging.ERROR) is None
    warned = passed(error, "It could not be shown", logging.WARNING)
    assert warned
    assert not warned.exc_info
    debugged = passed(error, "The traceback:", logging.DEBUG)
    assert debugged
    assert debugged.exc_info


def test_an_unexpected_error_keeps_its_traceback() -> None:
    record = passed(KeyError("x"), RAISED_ONCE_MORE, logging.ERROR)
    assert record
    assert record.exc_info


def test_foreign_text_is_escaped_and_shortened_in_the_fields_of_a_line() -> None:
    assert label(512) == 512
    assert label("41.zip") == "41.zip"
    for hostile in ("a\u202egpj.exe", "a\nERROR b", ["\x1b[31m"]):
        assert str(label(hostile)).isprintable()
    assert len(label("a" * 16_000)) < 300
