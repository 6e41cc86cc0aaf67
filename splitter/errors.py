"""Errors of an export: their sentence, who must act, and whether another attempt can help."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from botocore import exceptions as botocore
from botocore.parsers import ResponseParserError
from urllib3 import exceptions as urllib3

from splitter.sentences import Actor, Said, Sentence, Words, escaped


class SentenceError(Exception):
    """An error that is told with a sentence of the catalogue.

    Attributes:
        said: the sentence with its values.
    """

    def __init__(self, sentence: Sentence | Said | str, **values: Any) -> None:
        if isinstance(sentence, str):
            sentence = UNFILED(
                text=Words(escaped(" ".join(sentence[:MAX_UNFILED].split()), MAX_UNFILED))
            )
        self.said = sentence if isinstance(sentence, Said) else sentence(**values)
        super().__init__(self.said.text)

    def __reduce__(self) -> Any:
        return type(self), (self.said,)


class ExportError(SentenceError):
    """The export or its request is at fault. No attempt can help, so it is never retried."""


class SetupError(SentenceError):
    """The installation is at fault (a path, a setting, a permission). An operator must act."""


class Kind(Enum):
    """The meaning of an error code of S3 or SQS for the caller."""

    TRANSIENT = auto()
    """The same call can succeed later."""

    EXPIRED = auto()
    """The session of the credentials is over; transient as well, since a role renews them."""

    MISSING = auto()
    """There is no such object, bucket or queue."""

    REPLACED = auto()
    """The object is there, and is another one than before."""

    UPLOAD_GONE = auto()
    """The multipart upload was completed or aborted by somebody else; transient as well."""

    LEASE_LOST = auto()
    """A message is visible again, with another listener, or deleted; or 12 hours are over."""

    REFUSED = auto()
    """The credentials or their role may not; an operator has to see to it."""

    STATE = auto()
    """The bucket or object is set up so that it cannot be done; an operator has to see to it."""


@dataclass(frozen=True)
class Meaning:
    """The meaning of an error code.

    Attributes:
        fix: what an operator has to do, where only they can help.
        where: lower-case words of the service's message; the meaning holds only with them in it.
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
    # S3 calls it so, other services the other way
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
"""Every code that something here depends on; all others are faults. The first that fits counts."""

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
    """The table's entry for an error; None for another service or code."""
    if not isinstance(error, botocore.ClientError):
        return None
    code = error_code(error)
    text = str(error.response.get("Error", {}).get("Message", "")).lower()
    # SQS has AWS.SimpleQueueService. in front of some.
    for meaning in MEANINGS.get(code) or MEANINGS.get(code.rpartition(".")[2], ()):
        if meaning.where in text:
            return meaning
    return None


def is_kind(error: BaseException, *kinds: Kind) -> bool:
    """Whether the table has the error as one of these."""
    meaning = meaning_of(error)
    return meaning is not None and meaning.kind in kinds


def is_transient(error: BaseException) -> bool:
    """Whether the same call can succeed later: throttling, 5xx answers and lost connections."""
    if isinstance(error, botocore.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        # An upload that is gone: another run of the same export took it for one of a dead run.
        return status >= 500 or is_kind(error, Kind.TRANSIENT, Kind.EXPIRED, Kind.UPLOAD_GONE)
    if isinstance(error, TRANSIENT_TYPES):
        return True
    return error.__cause__ is not None and is_transient(error.__cause__)


def is_timeout(error: BaseException) -> bool:
    """Whether a service did not answer at all, for as long as the client waits."""
    if isinstance(error, TIMEOUT_TYPES):
        return True
    return error.__cause__ is not None and is_timeout(error.__cause__)


def operator_fix(error: BaseException) -> str:
    """The operator's action for an error of AWS; empty if the table has none."""
    meaning = meaning_of(error)
    if meaning:
        return meaning.fix
    return operator_fix(error.__cause__) if error.__cause__ is not None else ""


def require_field(answer: Mapping[str, Any], name: str) -> Any:
    """The field ``name`` of a service's answer, which every complete answer has.

    botocore takes an answer that was cut off behind its headers for a short one.

    Raises:
        ConnectionError: if it does not say so.
    """
    try:
        return answer[name]
    except KeyError:
        raise ConnectionError(f"an answer ended before its {name}") from None


def error_code(error: botocore.ClientError) -> str:
    """The service's code for an error, such as ``NoSuchKey``; ``404`` where a HEAD has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


MAX_UNFILED = 2000
UNFILED = Sentence("service.message", "{text}")

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
    """The advice of a sentence, or the default advice for its actor."""
    return sentence.advice or DEFAULT_ADVICE[sentence.actor]


@dataclass(frozen=True)
class Verdict:
    """A failure as people are told of it.

    Attributes:
        said: for a project manager.
        advice: for an operator.
    """

    said: Said
    advice: str

    @property
    def actor(self) -> Actor:
        return self.said.sentence.actor


def judge(error: BaseException) -> Verdict:
    """The sentence, who must act and what they do, for any error that ends a run."""
    if isinstance(error, SetupError):
        said = SETUP(problem=error.said)
        if error.said.sentence is not UNFILED:
            said = Said(error.said.sentence, said.text)
        return Verdict(said, default_advice(said.sentence))
    if isinstance(error, ExportError):
        return Verdict(error.said, default_advice(error.said.sentence))
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
    """One sentence about a failed export for a project manager, without a traceback."""
    return str(judge(error).said)
