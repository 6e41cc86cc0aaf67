from typing import Any

import pytest
from boto3.exceptions import RetriesExceededError
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)
from hypothesis import given
from hypothesis import strategies as st

from splitter.errors import ExportError, SetupError, advise, explain, is_transient


def answer(code: str, status: int) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": "first line\nsecond line"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "PutObject")


def caused_by(cause: Exception) -> Exception:
    error = RuntimeError("wrapped")
    error.__cause__ = cause
    return error


def given_up_after(last: Exception) -> Exception:
    return RetriesExceededError(last)  # type: ignore[arg-type]  # boto3 passes on any error


TRANSIENT = [
    answer("SlowDown", 503),
    answer("InternalError", 500),
    answer("503", 503),
    answer("Unheard", 502),
    answer("RequestTimeout", 400),
    answer("Throttling", 400),
    answer("ExpiredToken", 400),
    EndpointConnectionError(endpoint_url="https://example.org"),
    ConnectTimeoutError(endpoint_url="https://example.org"),
    ReadTimeoutError(endpoint_url="https://example.org"),
    ConnectionResetError("reset\nby peer"),
    TimeoutError(),
    caused_by(ConnectionResetError()),
    given_up_after(ConnectionResetError()),
]
PERMANENT = [
    answer("AccessDenied", 403),
    answer("NoSuchBucket", 404),
    answer("404", 404),
    answer("InvalidAccessKeyId", 403),
    NoCredentialsError(),
    ExportError("The export\nis bad."),
    SetupError("EFS_PATH /efs\ndoes not exist"),
    ValueError("first line\nsecond line"),
    KeyError("x"),
    caused_by(ValueError()),
    given_up_after(ValueError()),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_throttling_server_faults_and_lost_connections_may_pass(error: Exception) -> None:
    assert is_transient(error)
    assert "ask for the batches again later" in explain(error)


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
def test_what_is_wrong_with_the_export_or_the_setup_does_not_pass(error: Exception) -> None:
    assert not is_transient(error)
    assert "again later" not in explain(error)


@pytest.mark.parametrize("error", [*TRANSIENT, *PERMANENT], ids=repr)
def test_an_explanation_is_one_line_without_a_traceback(error: Exception) -> None:
    try:
        raise error
    except Exception as raised:
        sentence = explain(raised)
    assert len(sentence.splitlines()) == 1
    assert "Traceback" not in sentence
    assert __file__ not in sentence


@given(st.text())
def test_whatever_an_export_holds_its_explanation_is_one_line(text: str) -> None:
    assert len(explain(ExportError(f"The export has '{text}'.")).splitlines()) == 1


def test_a_fault_of_the_export_is_told_in_its_own_words() -> None:
    assert explain(ExportError("Line 7 names no image.")) == "Line 7 names no image."


def test_a_fault_of_the_setup_is_for_the_operator() -> None:
    sentence = explain(SetupError("EFS_PATH /efs does not exist."))
    assert "tell the operator" in sentence
    assert "EFS_PATH /efs does not exist." in sentence


def test_a_fault_of_the_program_is_named_by_its_kind_only() -> None:
    assert "(KeyError)" in explain(KeyError("secret"))
    assert "secret" not in explain(KeyError("secret"))


def test_a_refusal_by_aws_is_named_by_its_code() -> None:
    assert "AccessDenied from PutObject" in explain(answer("AccessDenied", 403))


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ExportError("The archive is damaged."), "nothing here"),
        (SetupError("EFS_PATH /efs does not exist."), "mend the installation"),
        (answer("SlowDown", 503), "whether AWS and the network are well"),
        (KeyError("x"), "read the traceback"),
    ],
    ids=["export", "setup", "transient", "fault"],
)
def test_an_operator_is_told_what_to_do(error: Exception, advice: str) -> None:
    assert advice in advise(error)
