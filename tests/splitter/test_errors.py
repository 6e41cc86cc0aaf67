from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)

from splitter import errors
from splitter.archives.formats import SENT_AS_TEXT
from splitter.aws.s3 import NO_OBJECT
from splitter.errors import (
    MEANINGS,
    ExportError,
    Kind,
    SetupError,
    explain,
    is_kind,
    is_timeout,
    is_transient,
    meaning_of,
    problem_of,
)
from splitter.sentences import Words
from splitter.workspace import NO_DIRECTORY


def answer(code: str, status: int, message: str = "first line\nsecond line") -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "PutObject")


def caused_by(cause: Exception) -> Exception:
    error = RuntimeError("wrapped")
    error.__cause__ = cause
    return error


TRANSIENT = [
    answer("SlowDown", 503),
    answer("InternalError", 500),
    answer("503", 503),
    answer("Unheard", 502),
    answer("RequestTimeout", 400),
    answer("Throttling", 400),
    answer("ExpiredToken", 400),
    answer("ExpiredTokenException", 403),
    EndpointConnectionError(endpoint_url="https://example.org"),
    ConnectTimeoutError(endpoint_url="https://example.org"),
    ReadTimeoutError(endpoint_url="https://example.org"),
    ConnectionResetError("reset\nby peer"),
    TimeoutError(),
    caused_by(ConnectionResetError()),
]
PERMANENT = [
    answer("AccessDenied", 403),
    answer("NoSuchBucket", 404),
    answer("404", 404),
    answer("InvalidAccessKeyId", 403),
    NoCredentialsError(),
    ExportError(NO_OBJECT, key="export/41\n.zip", bucket="biospex-app"),
    SetupError(NO_DIRECTORY, setting="EFS_PATH", path="/efs\n"),
    ValueError("first line\nsecond line"),
    KeyError("x"),
    caused_by(ValueError()),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_throttling_server_faults_and_lost_connections_may_pass(error: Exception) -> None:
    assert is_transient(error)
    assert "ask for the batches again later" in explain(error)


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_a_timeout_is_a_service_that_does_not_answer(error: Exception) -> None:
    timeouts = (ConnectTimeoutError, ReadTimeoutError)
    assert is_timeout(error) is isinstance(error, timeouts)
    assert is_timeout(caused_by(error)) is isinstance(error, timeouts)


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
def test_faults_of_the_export_and_the_setup_are_permanent(error: Exception) -> None:
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


@pytest.mark.parametrize(
    ("error", "sentence", "advice"),
    [
        (ExportError(SENT_AS_TEXT), "The archive was destroyed", "`aws s3 cp`"),
        (
            SetupError(NO_DIRECTORY, setting=Words("EFS_PATH"), path=Words("/efs")),
            "tell the operator: EFS_PATH /efs does not exist",
            "Mount the file system",
        ),
        (answer("SlowDown", 503), "(SlowDown from PutObject)", "status of AWS and the network"),
        (KeyError("secret"), "(KeyError)", "Read the traceback"),
    ],
    ids=["export", "setup", "transient", "fault"],
)
def test_each_kind_of_error_has_its_sentence_and_its_advice(
    error: Exception, sentence: str, advice: str
) -> None:
    assert sentence in explain(error)
    assert "secret" not in explain(error)
    assert advice in problem_of(error).advice


@pytest.mark.parametrize(
    ("code", "message", "fix"),
    [
        (
            "AccessDenied",
            "User: arn:aws:sts::1:assumed-role/x is not authorized to perform: "
            "kms:GenerateDataKey on resource: arn:aws:kms:us-east-2:1:key/2",
            "use the bucket's KMS key: run deploy.sh again",
        ),
        ("AccessDenied", "Access Denied", "SplitterRole"),
        ("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist", "credentials"),
        (
            "InvalidObjectState",
            "The operation is not valid for the object's storage class",
            "restore the export from the archive",
        ),
        (
            "InvalidRequest",
            "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with "
            "Object Lock parameters",
            "take the default retention of Object Lock off the bucket",
        ),
        ("KMS.DisabledException", "key is disabled", "switch the bucket's KMS key on again"),
        ("NoSuchBucket", "The specified bucket does not exist", "renamed or deleted"),
    ],
)
def test_an_error_that_only_an_operator_can_fix_has_advice(
    code: str, message: str, fix: str
) -> None:
    error = answer(code, 400, message)
    assert fix.lower() in problem_of(error).advice.lower()
    assert problem_of(error).advice == problem_of(caused_by(error)).advice
    assert problem_of(error).advice.endswith("then press Retry.")
    assert not is_transient(error)
    assert f"({code} from PutObject)" in explain(error)
    assert "please tell the operator" in explain(error)
    assert "because of a fault" not in explain(error)


def test_an_invalid_request_of_another_kind_is_a_fault() -> None:
    error = answer("InvalidRequest", 400, "Missing required header for this request")
    assert meaning_of(error) is None
    assert "Read the traceback" in problem_of(error).advice


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("NoSuchKey", Kind.MISSING),
        ("404", Kind.MISSING),
        ("AWS.SimpleQueueService.NonExistentQueue", Kind.MISSING),
        ("QueueDoesNotExist", Kind.MISSING),
        ("412", Kind.REPLACED),
        ("NoSuchUpload", Kind.UPLOAD_GONE),
        ("AWS.SimpleQueueService.MessageNotInflight", Kind.LEASE_LOST),
        ("ReceiptHandleIsInvalid", Kind.LEASE_LOST),
        ("403", Kind.REFUSED),
    ],
)
def test_the_codes_of_both_protocols_mean_the_same(code: str, kind: Kind) -> None:
    assert is_kind(answer(code, 400), kind)


def test_every_code_is_in_the_table_and_nowhere_else() -> None:
    codes = {code for each in MEANINGS for code in each.codes if not code.isdecimal()}
    for source in (Path(errors.__file__).parent).rglob("*.py"):
        if source.name != "errors.py":
            text = source.read_text()
            assert not {code for code in codes if f'"{code}"' in text}, source
