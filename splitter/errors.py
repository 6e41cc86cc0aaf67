"""Classifies errors: the sentence, the person who must act, and whether a retry can help."""

from collections.abc import Mapping
from dataclasses import dataclass
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
    """The meaning of an error code.

    Attributes:
        fix: the operator's action, if only an operator can help.
        where: lower-case words that the service's message must contain.
    """

    kind: Kind
    fix: str = ""
    where: str = ""


_ROLE = "let the role of the tasks do it (SplitterRole in deploy/stack.yaml)"
_KEYS = "correct the AWS credentials (the block aws-credentials/biospex, or the role of the tasks)"

MEANINGS: Mapping[str, tuple[Meaning, ...]] = {
    # https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#ErrorCodeList
    **dict.fromkeys(
        ("InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown"),
        (Meaning(Kind.TRANSIENT),),
    ),
    **dict.fromkeys(("500", "503"), (Meaning(Kind.TRANSIENT),)),  # HEAD has no body
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
    **dict.fromkeys(
        ("RequestThrottled", "ThrottlingException", "Throttling"), (Meaning(Kind.TRANSIENT),)
    ),
    "RequestExpired": (Meaning(Kind.TRANSIENT),),
    # S3's name and other services' name
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException"), (Meaning(Kind.EXPIRED),)),
    "NoSuchUpload": (Meaning(Kind.UPLOAD_GONE),),
    **dict.fromkeys(("404", "NotFound", "NoSuchKey"), (Meaning(Kind.MISSING),)),
    "NoSuchBucket": (
        Meaning(Kind.MISSING, "look whether the bucket was renamed or deleted (ALLOWED_BUCKETS)"),
    ),
    **dict.fromkeys(
        ("NonExistentQueue", "QueueDoesNotExist", "InvalidAddress"),
        (Meaning(Kind.MISSING, "look whether the queue that the request names is still there"),),
    ),
    **dict.fromkeys(("412", "PreconditionFailed"), (Meaning(Kind.REPLACED),)),
    **dict.fromkeys(
        ("MessageNotInflight", "ReceiptHandleIsInvalid", "InvalidParameterValue"),
        (Meaning(Kind.LEASE_LOST),),
    ),
    **dict.fromkeys(
        ("403", "AccessDenied", "AllAccessDisabled", "AccessDeniedException"),
        (
            Meaning(
                Kind.REFUSED,
                "let the role of the tasks use the bucket's KMS key: run deploy.sh with "
                "BUCKET_KEY_ARN, and look whether the key's policy leaves access to IAM",
                where="kms",
            ),
            Meaning(Kind.REFUSED, _ROLE),
        ),
    ),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId"),
        (Meaning(Kind.REFUSED, _KEYS),),
    ),
    # https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
    "InvalidObjectState": (
        Meaning(
            Kind.STATE,
            "restore the export from the archive (S3 console, Initiate restore), and take export/ "
            "out of the lifecycle rule that put it there",
        ),
    ),
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock-managing.html
    "InvalidRequest": (
        Meaning(
            Kind.STATE,
            "take the default retention of Object Lock off the bucket, or use another: a locked "
            "object needs a checksum with each upload, and could not expire",
            where="object lock",
        ),
    ),
    **dict.fromkeys(
        ("KMS.DisabledException", "KMS.NotFoundException", "KMS.KMSInvalidStateException"),
        (Meaning(Kind.STATE, "switch the bucket's KMS key on again, or give it another"),),
    ),
}
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
    code = error_code(error)
    text = str(error.response.get("Error", {}).get("Message", "")).lower()
    # Some codes of SQS begin with AWS.SimpleQueueService.
    for meaning in MEANINGS.get(code) or MEANINGS.get(code.rpartition(".")[2], ()):
        if meaning.where in text:
            return meaning
    return None


def is_kind(error: BaseException, *kinds: Kind) -> bool:
    """Whether ``MEANINGS`` assigns one of these kinds to the error."""
    meaning = meaning_of(error)
    return meaning is not None and meaning.kind in kinds


def is_transient(error: BaseException) -> bool:
    """Whether the same call can succeed later: throttling, 5xx answers, lost connections."""
    if isinstance(error, botocore.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        # UPLOAD_GONE: another run of the same export aborted it as a leftover.
        return status >= 500 or is_kind(error, Kind.TRANSIENT, Kind.EXPIRED, Kind.UPLOAD_GONE)
    if isinstance(error, TRANSIENT_TYPES):
        return True
    return error.__cause__ is not None and is_transient(error.__cause__)


def is_timeout(error: BaseException) -> bool:
    """Whether a service did not answer within the client's timeout."""
    if isinstance(error, TIMEOUT_TYPES):
        return True
    return error.__cause__ is not None and is_timeout(error.__cause__)


def operator_fix(error: BaseException) -> str:
    """The operator's action for an error of AWS, or an empty string."""
    meaning = meaning_of(error)
    if meaning:
        return meaning.fix
    return operator_fix(error.__cause__) if error.__cause__ is not None else ""


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
    "Correct the installation as the sentence says, then press Retry.",
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

REPLACE_ARCHIVE = (
    "Send this sentence to whoever made the export. When you have their corrected archive, copy it "
    "over the old one (`aws s3 cp`, same key), then press Retry."
)
ASK_AGAIN = "Send this sentence to the administrator of BIOSPEX, who sends a corrected request."
NOTHING = "Nothing has to be done."

DEFAULT_ADVICE = {
    Actor.MAKER: REPLACE_ARCHIVE,
    Actor.OPERATOR: SETUP.advice,
    Actor.REQUESTER: ASK_AGAIN,
    Actor.NOBODY: NOTHING,
}


def default_advice(sentence: Sentence) -> str:
    """The operator's action for a sentence: its own advice or the default of its actor."""
    return sentence.advice or DEFAULT_ADVICE[sentence.actor]


@dataclass(frozen=True)
class Verdict:
    """The report of a failure: ``problem`` for a project manager, ``advice`` for an operator."""

    problem: Problem
    advice: str

    @property
    def actor(self) -> Actor:
        return self.problem.sentence.actor


def judge(error: BaseException) -> Verdict:
    """The report of any error that ends a run."""
    if isinstance(error, SetupError):
        problem = Problem(error.problem.sentence, SETUP(problem=error.problem).text)
        return Verdict(problem, default_advice(problem.sentence))
    if isinstance(error, ExportError):
        return Verdict(error.problem, default_advice(error.problem.sentence))
    if isinstance(error, MemoryError):
        return Verdict(OUT_OF_MEMORY(), OUT_OF_MEMORY.advice)
    cause = type(error).__name__
    if isinstance(error, botocore.ClientError):
        cause = f"{error_code(error)} from {error.operation_name}"
    if isinstance(error, OSError) and error.strerror:
        cause = error.strerror
    if is_transient(error):
        return Verdict(UNAVAILABLE(cause=cause), UNAVAILABLE.advice)
    if fix := operator_fix(error):
        return Verdict(
            REFUSED_BY_AWS(cause=cause), f"{fix[:1].upper()}{fix[1:]}; then press Retry."
        )
    return Verdict(FAULT(cause=cause), FAULT.advice)


def explain(error: BaseException) -> str:
    """One sentence for a project manager about any error."""
    return str(judge(error).problem)
