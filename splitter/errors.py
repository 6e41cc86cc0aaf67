"""What goes wrong with an export, whether waiting helps, and how to say it to a project manager."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from botocore import exceptions as botocore
from botocore.parsers import ResponseParserError
from urllib3 import exceptions as urllib3


class ExportError(Exception):
    """The export or its request is at fault: the message says what, where and what to do.

    Trying again cannot help, so nothing that raises it is retried.
    """


class SetupError(Exception):
    """The installation is at fault (a path, a setting, a permission): for the operator to fix."""


class Kind(Enum):
    """What an error code of S3 or SQS means for whoever made the call."""

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
    """What an error code means.

    Attributes:
        fix: what an operator has to do, where only he can help.
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


def meaning_of(error: BaseException) -> Meaning | None:
    """What the table says of an error; None for one of another service or code."""
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


def operator_fix(error: BaseException) -> str:
    """What an operator has to do about an error of AWS; empty where the table knows nothing."""
    meaning = meaning_of(error)
    if meaning:
        return meaning.fix
    return operator_fix(error.__cause__) if error.__cause__ is not None else ""


def require_field(answer: Mapping[str, Any], name: str) -> Any:
    """What a service's answer says of ``name``, as every whole one does.

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


def explain(error: BaseException) -> str:
    """One sentence about a failed export that a project manager can act on, without a traceback."""
    message = " ".join(str(error).split())  # names and header cells may hold line breaks
    message = message.encode(errors="replace").decode()  # and bytes that are no text
    if isinstance(error, ExportError):
        return message
    if isinstance(error, SetupError):
        return f"The batch service is not set up correctly, please tell the operator: {message}"
    if isinstance(error, MemoryError):
        return "The batch service ran out of memory; please tell the operator to give it more."
    cause = type(error).__name__
    if isinstance(error, botocore.ClientError):
        cause = f"{error_code(error)} from {error.operation_name}"
    if isinstance(error, OSError) and error.strerror:
        cause = error.strerror
    if is_transient(error):
        return (
            f"Amazon storage did not answer properly, even after several attempts ({cause}); "
            "please ask for the batches again later."
        )
    if operator_fix(error):
        return (
            f"Amazon storage refused the batch service something ({cause}); please tell the "
            "operator, who finds on the page of the run what to do."
        )
    return f"The batches could not be made because of a fault ({cause}); please tell the operator."


def advise(error: BaseException) -> str:
    """What an operator can do about a failed export."""
    if isinstance(error, ExportError):
        return (
            "no action needed here: the export or its request is at fault, as the sentence says. "
            "Retry helps once the archive in S3 has been replaced."
        )
    if isinstance(error, SetupError):
        return "fix the installation as the message says, then press Retry."
    if is_transient(error):
        return "look whether AWS and the network are well, then press Retry."
    if fix := operator_fix(error):
        return f"{fix}; then press Retry."
    return "read the traceback in the log; once the cause is gone, press Retry."
