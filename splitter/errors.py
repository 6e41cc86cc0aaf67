"""What goes wrong with an export, whether waiting helps, and how to say it to a project manager."""

from collections.abc import Mapping
from typing import Any

from botocore import exceptions as botocore
from botocore.parsers import ResponseParserError
from urllib3 import exceptions as urllib3


class ExportError(Exception):
    """The export or its request is at fault: the message says what, where and what to do.

    Trying again cannot help, so nothing that raises it is retried.
    """


class SetupError(Exception):
    """The installation is at fault (a path, a setting, a permission): for the operator to mend."""


TRANSIENT_CODES = frozenset(
    {
        # https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#ErrorCodeList
        "InternalError",
        "OperationAborted",
        "NoSuchUpload",  # another run of the same export took the upload for one of a dead run
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "503",
        "500",
        # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
        "RequestThrottled",
        "ThrottlingException",
        "Throttling",
        # credentials that a role renews
        "ExpiredToken",
        "RequestExpired",
    }
)

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


def is_transient(error: BaseException) -> bool:
    """Whether the same call can succeed later: throttling, 5xx answers and lost connections."""
    if isinstance(error, botocore.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or error_code(error) in TRANSIENT_CODES
    if isinstance(error, TRANSIENT_TYPES):
        return True
    # boto3 and s3transfer wrap the last of their own attempts
    wrapped = getattr(error, "last_exception", None) or error.__cause__
    return isinstance(wrapped, BaseException) and is_transient(wrapped)


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
    return f"The batches could not be made because of a fault ({cause}); please tell the operator."


def advise(error: BaseException) -> str:
    """What an operator can do about a failed export."""
    if isinstance(error, ExportError):
        return (
            "nothing here; the export or its request is at fault, and whoever asked for it is told."
        )
    if isinstance(error, SetupError):
        return "mend the installation as the message says, then press Retry."
    if is_transient(error):
        return "look whether AWS and the network are well, then press Retry."
    return "read the traceback in the log; once the cause is gone, press Retry."
