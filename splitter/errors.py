"""Classifies errors: the sentence, the person who must act, and whether a retry can help."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from botocore import exceptions as botocore
from botocore.parsers import ResponseParserError
from urllib3 import exceptions as urllib3

from splitter.sentences import Actor, Problem, Sentence


class SentenceError(Exception):
    """An error with a sentence of the catalogue."""

    def __init__(self, sentence: Sentence | Problem, **values: Any) -> None:
        self.problem = sentence if isinstance(sentence, Problem) else sentence(**values)
        super().__init__(self.problem.text)

    def __reduce__(self) -> Any:
        return type(self), (self.problem,)


class ExportError(SentenceError):
    """The export or its request is at fault. It is never retried, because that cannot help."""


class SetupError(SentenceError):
    """The installation is at fault (a path, a setting, a permission). An operator must act."""


class Kind(Enum):
    """A group of error codes of S3 and SQS."""

    TRANSIENT = auto()  # the same call can succeed later
    EXPIRED = auto()  # the credentials' session; also transient, because a role renews it
    MISSING = auto()  # there is no such object, bucket or queue
    REPLACED = auto()  # the object was replaced by another one
    UPLOAD_GONE = auto()  # the upload was completed or aborted by another process; also transient
    LEASE_LOST = auto()  # the message was deleted, is visible or with another listener, or 12 h old
    REFUSED = auto()  # the credentials or their role lack a permission
    STATE = auto()  # the configuration of the bucket or object forbids the call


@dataclass(frozen=True)
class Meaning:
    """The meaning of error codes.

    Attributes:
        fix: the operator's action, if only an operator can help.
        where: lower-case words that the service's message must contain.
    """

    kind: Kind
    codes: tuple[str, ...]
    fix: str = ""
    where: str = ""


# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#ErrorCodeList
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
# An answer to HEAD has no body, so its code is the HTTP status.
REFUSED = ("403", "AccessDenied", "AllAccessDisabled", "AccessDeniedException")
MEANINGS = (
    Meaning(
        Kind.TRANSIENT,
        (
            *("500", "503", "InternalError", "OperationAborted", "RequestTimeout", "SlowDown"),
            *("ServiceUnavailable", "RequestThrottled", "ThrottlingException", "Throttling"),
            "RequestExpired",
        ),
    ),
    Meaning(Kind.EXPIRED, ("ExpiredToken", "ExpiredTokenException")),
    Meaning(Kind.UPLOAD_GONE, ("NoSuchUpload",)),
    Meaning(Kind.MISSING, ("404", "NotFound", "NoSuchKey")),
    Meaning(
        Kind.MISSING,
        ("NoSuchBucket",),
        "Look whether the bucket was renamed or deleted (ALLOWED_BUCKETS)",
    ),
    Meaning(
        Kind.MISSING,
        ("NonExistentQueue", "QueueDoesNotExist", "InvalidAddress"),
        "Look whether the queue that the request names is still there",
    ),
    Meaning(Kind.REPLACED, ("412", "PreconditionFailed")),
    Meaning(
        Kind.LEASE_LOST, ("MessageNotInflight", "ReceiptHandleIsInvalid", "InvalidParameterValue")
    ),
    Meaning(
        Kind.REFUSED,
        REFUSED,
        "Let the role of the tasks use the bucket's KMS key: run deploy.sh again, which finds it, "
        "and look whether the key's policy leaves access to IAM",
        where="kms",
    ),
    Meaning(
        Kind.REFUSED,
        REFUSED,
        "Let the role of the tasks do it (SplitterRole in deploy/stack.yaml)",
    ),
    Meaning(
        Kind.REFUSED,
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId"),
        "Correct the AWS credentials (the block aws-credentials/biospex, or the role of the tasks)",
    ),
    # https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
    Meaning(
        Kind.STATE,
        ("InvalidObjectState",),
        "Restore the export from the archive (S3 console, Initiate restore), and take export/ out "
        "of the lifecycle rule that put it there",
    ),
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock-managing.html
    Meaning(
        Kind.STATE,
        ("InvalidRequest",),
        "Take the default retention of Object Lock off the bucket, or use another: a locked object "
        "needs a checksum with each upload, and could not expire",
        where="object lock",
    ),
    Meaning(
        Kind.STATE,
        ("KMS.DisabledException", "KMS.NotFoundException", "KMS.KMSInvalidStateException"),
        "Switch the bucket's KMS key on again, or give it another",
    ),
)
"""All codes that are handled. Other codes are faults. The first matching meaning counts."""

TRANSIENT_TYPES = (
    botocore.ConnectionError,
    botocore.HTTPClientError,
    botocore.IncompleteReadError,
    botocore.FlexibleChecksumError,
    botocore.ResponseStreamingError,
    ResponseParserError,
    urllib3.HTTPError,
    ConnectionError,
    TimeoutError,
)

TIMEOUT_TYPES = (botocore.ConnectTimeoutError, botocore.ReadTimeoutError)


def meaning_of(error: BaseException) -> Meaning | None:
    """The entry of ``MEANINGS`` for an error, or None."""
    if not isinstance(error, botocore.ClientError):
        return None
    code = error_code(error).removeprefix("AWS.SimpleQueueService.")
    text = str(error.response.get("Error", {}).get("Message", "")).lower()
    found = (each for each in MEANINGS if code in each.codes and each.where in text)
    return next(found, None)


def is_kind(error: BaseException, *kinds: Kind) -> bool:
    """Whether ``MEANINGS`` assigns one of these kinds to the error."""
    meaning = meaning_of(error)
    return meaning is not None and meaning.kind in kinds


def is_transient(error: BaseException) -> bool:
    """Whether the same call can succeed later: throttling, 5xx answers, lost connections."""
    return any(
        isinstance(each, TRANSIENT_TYPES)
        or (isinstance(each, botocore.ClientError) and _status(each) >= 500)
        # UPLOAD_GONE: another run of the same export aborted it as a leftover.
        or is_kind(each, Kind.TRANSIENT, Kind.EXPIRED, Kind.UPLOAD_GONE)
        for each in _with_causes(error)
    )


def is_timeout(error: BaseException) -> bool:
    """Whether a service did not answer within the client's timeout."""
    return any(isinstance(each, TIMEOUT_TYPES) for each in _with_causes(error))


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__


def _status(error: botocore.ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def require_field(answer: Mapping[str, Any], name: str) -> Any:
    """A mandatory field of a service's answer.

    botocore accepts an answer that was cut off after its headers.

    Raises:
        ConnectionError: if the field is missing.
    """
    try:
        return answer[name]
    except KeyError:
        raise ConnectionError(f"an answer ended before its {name}") from None


def error_code(error: botocore.ClientError) -> str:
    """The service's error code, such as ``NoSuchKey``; ``404`` for HEAD, which has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


SETUP = Sentence(
    "service.setup",
    "The batch service is not set up correctly, please tell the operator: {problem}",
    Actor.OPERATOR,
)
OUT_OF_MEMORY = Sentence(
    "service.out-of-memory",
    "The batch service ran out of memory; please tell the operator to give it more.",
    Actor.OPERATOR,
    "Give the run's task or machine more memory, then press Retry.",
)
UNAVAILABLE = Sentence(
    "aws.unavailable",
    "Amazon storage did not answer properly, even after several attempts ({cause:bare}); "
    "please ask for the batches again later.",
    Actor.OPERATOR,
    "Check the status of AWS and the network, then press Retry.",
)
REFUSED_BY_AWS = Sentence(
    "aws.refused",
    "Amazon storage refused a request of the batch service ({cause:bare}); please tell the "
    "operator, who finds what to do on the run page.",
    Actor.OPERATOR,
    "The run's summary names the permission or setting; correct it, then press Retry.",
)
FAULT = Sentence(
    "service.fault",
    "The batches could not be made because of a fault ({cause:bare}); please tell the operator.",
    Actor.OPERATOR,
    "Read the traceback in the log; once its cause is gone, press Retry.",
)


def problem_of(error: BaseException) -> Problem:
    """The report of any error that ends a run."""
    if isinstance(error, SetupError):
        return replace(error.problem, text=SETUP(problem=error.problem).text)
    if isinstance(error, ExportError):
        return error.problem
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY()
    cause = type(error).__name__
    if isinstance(error, botocore.ClientError):
        cause = f"{error_code(error)} from {error.operation_name}"
    if isinstance(error, OSError) and error.strerror:
        cause = error.strerror
    if is_transient(error):
        return UNAVAILABLE(cause=cause)
    meaning = next(filter(None, map(meaning_of, _with_causes(error))), None)
    if meaning and meaning.fix:
        return replace(REFUSED_BY_AWS(cause=cause), advice=f"{meaning.fix}; then press Retry.")
    return FAULT(cause=cause)


def explain(error: BaseException) -> str:
    """One sentence for a project manager about any error."""
    return str(problem_of(error))
