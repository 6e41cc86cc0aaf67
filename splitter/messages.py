"""Parses the trigger messages and writes the callback messages of SQS.

Only this module uses the wire's camelCase names. Every trigger passes the same checks in the same
order: length of the body and JSON (``parse_body``), size, depth and characters (``find_flaw``),
fields (``Request.parse``). Checks that take more than linear time come after length checks;
``ReplyAddress.of`` limits its own two fields.
"""

import json
import string
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.alias_generators import to_camel

from splitter.errors import ExportError, SetupError
from splitter.sentences import Actor, Problem, Sentence, escaped

ARCHIVE_SUFFIXES = (".zip", ".tar.gz", ".tgz", ".tar")

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
BUCKET_NAME = r"^[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]$"
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
MAX_KEY_BYTES = 1024
MAX_FILE_BYTES = MAX_KEY_BYTES - len("batch/-part10000.zip")
BATCH_FOLDER = "batch/"
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
# SQS accepts 1 MiB today; an older queue accepts 256 KiB unless it was changed.
MAX_CALLBACK_BYTES = 256 * 1024
MAX_BODY_BYTES = 1024**2

# BIOSPEX's triggers are far smaller: six short fields.
MAX_TRIGGER_BYTES = 16 * 1024
MAX_TRIGGER_DEPTH = 8
# A queue's name has at most 80 characters, a host at most 253.
MAX_QUEUE_URL = 512
MAX_LABEL = 200
# The largest integer of Prefect's API and PostgreSQL.
MAX_INTEGER = 2**63 - 1

# Without the percent sign, because an encoded slash would match a pattern of ALLOWED_QUEUES.
QUEUE_URL_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-._:/[]")


EXAMPLE_QUEUE = "https://sqs.us-east-2.amazonaws.com/000000000000/prod-batch-update"
EXAMPLE_FILE = "41-2-3f2a8d1c-5b7e-4c1a-9e2d-7a6b5c4d3e2f.zip"


class RequestError(ExportError, ValueError):
    """An invalid trigger message or field. Pydantic catches it in validators as a ValueError."""


def _sentence(code: str, template: str) -> Sentence:
    return Sentence(f"request.{code}", template, Actor.REQUESTER)


REFUSED = _sentence(
    "cannot-be-carried-out",
    "The request for batches cannot be carried out: {problems:bare}; ask for them again, and if "
    "that fails too, tell BIOSPEX's administrator.",
)
TOO_LONG = _sentence("too-long", "it is longer than {limit} bytes")
TOO_DEEP = _sentence("too-deep", "{field} is nested too deeply")
CONTROL_IN_NAME = _sentence(
    "control-character-in-name", "the name of a field has a control character"
)
RESERVED_NAME = _sentence("reserved-name", "the name of a field begins with '__'")
CONTROL_IN_VALUE = _sentence(
    "control-character", "{field} must not contain control or direction characters"
)
NUMBER_TOO_LARGE = _sentence("number-too-large", "{field} is too large a number")
NOT_AN_OBJECT = _sentence("not-an-object", "it is not a JSON object with fields")
MISSING_FIELD = _sentence("missing-field", "{field} is missing")
VALUE_TOO_LONG = _sentence("value-too-long", "{field} must not be longer than {limit} bytes")
NOT_A_TEXT = _sentence("not-a-text", "{field} must be a non-empty text")
NOT_A_FILE_NAME = _sentence(
    "not-a-file-name", "'file' must be a plain file name, without a slash or '..'"
)
NO_STEM = _sentence("no-stem", "'file' must have a name in front of its extension")
NOT_A_KEY = _sentence(
    "not-a-key",
    "'exportPath' must be the key of an archive in the bucket of the request, such as "
    "export/41.zip, and not an address",
)
OTHER_ARCHIVE = _sentence(
    "other-archive", "'exportPath' must end in the file name of the archive, after a slash"
)
KEY_OF_A_BATCH = _sentence(
    "key-of-a-batch",
    "'exportPath' must not lead to the folder batch/, which is where the batches are put",
)
NOT_A_DOWNLOAD_ID = _sentence("not-a-download-id", "'downloadId' must be a number or a short text")
NOT_A_SIZE = _sentence("not-a-size", "'totalSize' must be a whole number of bytes")
NOT_A_BUCKET = _sentence(
    "not-a-bucket", "'s3Bucket' is not the name of a bucket, such as biospex-app"
)
NOT_A_QUEUE = _sentence("not-a-queue", "'updatesQueueUrl' must be the http(s) URL of an SQS queue")
NOT_AN_ADDRESS = _sentence(
    "not-an-address",
    "The request {address} is not the address of an archive; write it like "
    "s3://biospex-app/export/41.zip.",
)


# A wrapped message names no callback queue, so it becomes a dead letter.
def _wrapped(code: str, template: str, advice: str) -> Sentence:
    return Sentence(f"request.{code}", template, Actor.OPERATOR, advice)


WRAPPED_BY_SNS = _wrapped(
    "wrapped-by-sns",
    "it is a notification of SNS, which holds the request as text in 'Message': switch on raw "
    "message delivery in the queue's subscription",
    "In SNS, open the queue's subscription, press Edit and switch on raw message delivery; then "
    "send the request again.",
)
WRAPPED_BY_EVENTBRIDGE = _wrapped(
    "wrapped-by-eventbridge",
    "it is an event of EventBridge, which holds the request in 'detail': set the input of the "
    "rule's target to the part $.detail of the event",
    "In EventBridge, edit the rule's target, Additional settings: set its input to Part of the "
    "matched event, $.detail; then send the request again.",
)
EVENT_OF_S3 = _wrapped(
    "event-of-s3",
    "it is an event notification of an S3 bucket and no request: remove the trigger queue from the "
    "event notifications of the bucket",
    "In S3, open the bucket's Properties, Event notifications, and delete the one that sends to "
    "the trigger queue.",
)
UNANSWERABLE = Sentence(
    "request.unanswerable",
    "it is not JSON, or has no usable downloadId and updatesQueueUrl that ALLOWED_QUEUES allows, "
    "so it cannot be answered",
    Actor.OPERATOR,
    "Look at the message in the dead-letter queue. If it is a request, correct ALLOWED_QUEUES or "
    "the program that sends it, then replay the queue.",
)
TOO_MANY_BATCHES = Sentence(
    "request.too-many-batches",
    "{batches} batches are more than one message to BIOSPEX can name ({limit} bytes); BATCH_SIZE "
    "is too small.",
    Actor.OPERATOR,
    "Set a larger BATCH_SIZE, then press Retry.",
)


def _key(value: str, info: ValidationInfo) -> str:
    field = to_camel(info.field_name or "")
    if len(value) > MAX_KEY_BYTES or len(value.encode("utf-8", "replace")) > MAX_KEY_BYTES:
        raise RequestError(VALUE_TOO_LONG, field=field, limit=MAX_KEY_BYTES)
    # The key appears in the callback and on pages.
    if escaped(value, MAX_KEY_BYTES) != value:
        raise RequestError(CONTROL_IN_VALUE, field=field)
    return value


def _file_name(value: str) -> str:
    if "/" in value or "\\" in value or ".." in value:
        raise RequestError(NOT_A_FILE_NAME)
    if not archive_stem(value).strip():
        raise RequestError(NO_STEM)
    if len(value.encode()) > MAX_FILE_BYTES:
        raise RequestError(VALUE_TOO_LONG, field="file", limit=MAX_FILE_BYTES)
    return value


def _queue_url(value: str) -> str:
    wrong = RequestError(NOT_A_QUEUE)
    # Checked first, because urlsplit normalises a non-ASCII host in quadratic time.
    if len(value) > MAX_QUEUE_URL or not QUEUE_URL_CHARACTERS.issuperset(value):
        raise wrong
    try:
        address = urlsplit(value)
    except ValueError:  # an incomplete IPv6 address
        raise wrong from None
    if address.scheme not in ("http", "https") or not address.hostname or ".." in address.path:
        raise wrong
    return value


# JSON has no NaN and no infinity. Python's parser accepts them, BIOSPEX's parser does not.
Number = Annotated[StrictFloat, Field(allow_inf_nan=False)]
ShortText = Annotated[StrictStr, Field(max_length=MAX_TRIGGER_BYTES)]
DownloadId = StrictInt | Number | StrictBool | ShortText
QueueUrl = Annotated[str, AfterValidator(_queue_url)]
Key = Annotated[str, Field(min_length=1), AfterValidator(_key)]


NOBODY = ""
"""The callback queue of a request by hand. A trigger with this value is invalid."""


class WireModel(BaseModel):
    """A message with camelCase names. Unknown fields are ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        field_title_generator=lambda name, _: to_camel(name),
        validate_by_name=True,
        use_attribute_docstrings=True,
        frozen=True,
    )


class ReplyAddress(WireModel):
    """The fields of a request that a callback needs; they may be valid if others are not."""

    download_id: DownloadId = Field(examples=[512])
    """Id of the download record, such as 512; comes back unchanged in the callback."""
    updates_queue_url: QueueUrl = Field(examples=[EXAMPLE_QUEUE])
    """SQS queue that gets the callback, such as
    https://sqs.us-east-2.amazonaws.com/000000000000/prod-batch-update."""

    @classmethod
    def of(cls, message: Any) -> "ReplyAddress | None":
        """The address for the callback of ``message``; None if it has no valid one."""
        if isinstance(message, ReplyAddress):
            return message if message.updates_queue_url != NOBODY else None
        try:
            return ReplyAddress.model_validate(message)
        except ValidationError:
            return None


class Request(ReplyAddress):
    """An export, as in BIOSPEX's trigger message. By hand, choose "str" and enter s3://bucket/key."""

    file: Annotated[Key, AfterValidator(_file_name)] = Field(examples=[EXAMPLE_FILE])
    """File name of the archive, which names the batches, such as
    41-2-3f2a8d1c-5b7e-4c1a-9e2d-7a6b5c4d3e2f.zip."""
    export_path: Key = Field(examples=[f"export/{EXAMPLE_FILE}"])
    """S3 key of the archive, such as export/41-2-3f2a8d1c-5b7e-4c1a-9e2d-7a6b5c4d3e2f.zip."""
    total_size: int | None = Field(default=None, ge=0, examples=[2456719374])
    """Bytes of the archive when the message was sent, such as 2456719374; if the object has another
    size, the run warns and goes on."""
    s3_bucket: str = Field(pattern=BUCKET_NAME, examples=["biospex-app"])
    """Bucket of the archive and of the batches, such as biospex-app."""

    @classmethod
    def parse(cls, message: Any) -> Self:
        """Validate a trigger message: a dict with the wire's names, or a ``Request``.

        Raises:
            RequestError: names every invalid or missing field.
        """
        if flaw := find_flaw(message):
            raise RequestError(flaw)
        try:
            return cls.model_validate(message)
        except ValidationError as error:
            raise RequestError(_refusal(error)) from None

    @field_validator("export_path")
    @classmethod
    def _check_export_path(cls, path: str, info: ValidationInfo) -> str:
        if "://" in path:
            raise RequestError(NOT_A_KEY)
        if path.startswith(BATCH_FOLDER):
            raise RequestError(KEY_OF_A_BATCH)
        # Otherwise a request could overwrite the batches of another archive.
        file = info.data.get("file")
        if file is not None and path != file and not path.endswith(f"/{file}"):
            raise RequestError(OTHER_ARCHIVE)
        return path

    @classmethod
    def by_hand(cls, address: str) -> Self:
        """The request for ``s3://bucket/key``, without a callback.

        Raises:
            RequestError: if the address is invalid.
        """
        request = cls.parse(spelled_out(address, "https://nobody.invalid/"))
        return request.model_copy(update={"updates_queue_url": NOBODY})

    @property
    def wants_answer(self) -> bool:
        """Whether the request names a callback queue."""
        return self.updates_queue_url != NOBODY

    @property
    def stem(self) -> str:
        """``file`` without its archive extension."""
        return archive_stem(self.file)

    def batch_file(self, part: int) -> str:
        """File name of a batch; ``part`` counts from 1."""
        return f"{self.stem}-part{part}.zip"

    def batch_key(self, part: int) -> str:
        """S3 key of a batch; ``part`` counts from 1."""
        return BATCH_FOLDER + self.batch_file(part)


class Result(WireModel):
    """The callback of a successful export. ``batch_files`` has the batches' file names in order."""

    function: Literal["BiospexBatchCreator"] = "BiospexBatchCreator"
    status: Literal["success"] = "success"
    download_id: DownloadId
    batch_files: list[str]

    @classmethod
    def of(cls, request: Request, batches: int) -> Self:
        """The callback of an export with this number of batches.

        Raises:
            SetupError: if the callback is too long for SQS.
        """
        files = [request.batch_file(part) for part in range(1, batches + 1)]
        result = cls(download_id=request.download_id, batch_files=files)
        if len(to_json(result)) > MAX_CALLBACK_BYTES:
            raise SetupError(TOO_MANY_BATCHES, batches=batches, limit=MAX_CALLBACK_BYTES)
        return result


class Failure(WireModel):
    """The callback of a failed export. ``error`` is one sentence for a project manager."""

    function: Literal["BiospexBatchCreator"] = "BiospexBatchCreator"
    status: Literal["failed"] = "failed"
    download_id: DownloadId
    error: str


def parse_body(body: str) -> Any:
    """A trigger's JSON; None for invalid JSON, including NaN and half surrogate pairs.

    Parses any body that SQS accepts, in linear time, so that a trigger that is too long still gets
    a callback.
    """
    if len(body) > MAX_BODY_BYTES:
        return None
    try:
        message = json.loads(body, parse_constant=_refuse_number, parse_float=_finite)
        json.dumps(message, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return message


RESERVED = "__"
"""Prefix of field names that Prefect evaluates when a person copies a run in the UI. BIOSPEX does
not use it."""


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if isfinite(number) else _refuse_number(text)


def find_wrapping(message: Any) -> Problem | None:
    """The sentence about an AWS service that wrapped a request or sent its own event."""
    if not isinstance(message, dict) or "downloadId" in message:
        return None
    # https://docs.aws.amazon.com/sns/latest/dg/sns-sqs-as-subscriber.html
    if message.get("Type") == "Notification" and "TopicArn" in message:
        return WRAPPED_BY_SNS()
    # https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-events-structure.html
    if "detail-type" in message and "detail" in message:
        return WRAPPED_BY_EVENTBRIDGE()
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html
    records = message.get("Records")
    first = records[0] if isinstance(records, list) and records else None
    if message.get("Event") == "s3:TestEvent" or (
        isinstance(first, dict) and first.get("eventSource") == "aws:s3"
    ):
        return EVENT_OF_S3()
    return None


def find_flaw(message: Any) -> Problem | None:
    """The reason why a message must not be passed to another service, or None.

    Prefect's API or its database may refuse it or fill up. For example, PostgreSQL's jsonb refuses
    U+0000 (https://www.postgresql.org/docs/current/datatype-json.html).
    """
    if isinstance(message, Request):
        return None
    if _is_too_long(message):
        return _refused([TOO_LONG(limit=MAX_TRIGGER_BYTES)])
    problem = find_wrapping(message) or _find_problem(message)
    return _refused([problem]) if problem else None


def _is_too_long(message: Any) -> bool:
    """Whether a message is too long in UTF-8. Its body may be longer because of escapes."""
    try:
        text = json.dumps(message, default=str, ensure_ascii=False)
    except RecursionError:
        return True
    return len(text.encode("utf-8", "surrogatepass")) > MAX_TRIGGER_BYTES


def _find_problem(message: Any) -> Problem | None:
    open_values = [("message", 0, message)]
    while open_values:
        field, depth, value = open_values.pop()
        inner: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, dict):
            inner = value.items()
        elif isinstance(value, list):
            inner = ((field, element) for element in value)
        for key, element in inner:
            if _has_control(key):
                return CONTROL_IN_NAME()
            if str(key).startswith(RESERVED):
                return RESERVED_NAME()
            open_values.append((str(key) if depth == 0 else field, depth + 1, element))
        if depth > MAX_TRIGGER_DEPTH:
            return TOO_DEEP(field=field)
        if _has_control(value):
            return CONTROL_IN_VALUE(field=field)
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            return NUMBER_TOO_LARGE(field=field)
    return None


def _has_control(value: Any) -> bool:
    return isinstance(value, str) and any(
        character < " " or "\x7f" <= character <= "\x9f" for character in value
    )


def _refused(problems: list[Problem]) -> Problem:
    """The whole sentence. A single problem provides the code."""
    whole = REFUSED(problems=problems)
    return replace(problems[0], text=whole.text) if len(problems) == 1 else whole


def spelled_out(address: str, updates_queue_url: str) -> Any:
    """The trigger message for ``s3://bucket/key``, with the time as download id.

    Raises:
        RequestError: if the address is invalid.
    """
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not address.startswith("s3://") or not bucket or not key:
        raise RequestError(NOT_AN_ADDRESS, address=address)
    return {
        "downloadId": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}",
        "file": key.rpartition("/")[2],
        "exportPath": key,
        "s3Bucket": bucket,
        "updatesQueueUrl": updates_queue_url,
    }


def archive_stem(file: str) -> str:
    for suffix in ARCHIVE_SUFFIXES:
        if file.lower().endswith(suffix):
            return file[: -len(suffix)]
    return file


def title(message: Any) -> str:
    """``download 512: name.zip``, with placeholders for missing fields.

    The id comes first, because Prefect's UI cuts long names.
    """
    address = ReplyAddress.of(message)
    wanted = message.model_dump(by_alias=True) if isinstance(message, Request) else message
    file = wanted.get("file") if isinstance(wanted, dict) else None
    download = address.download_id if address else "?"
    return f"download {printable(download)}: {printable(file or 'unnamed export')}"


def printable(value: Any) -> str:
    """A value for a label: short, without control and invisible characters."""
    return escaped(str(value), MAX_LABEL)


def to_json(message: Request | Result | Failure) -> str:
    """The body of a message. It is ASCII, because SQS refuses some characters."""
    return json.dumps(message.model_dump(by_alias=True))


WRONG_TYPE = {
    "message": NOT_AN_OBJECT,
    "downloadId": NOT_A_DOWNLOAD_ID,
    "totalSize": NOT_A_SIZE,
    "updatesQueueUrl": NOT_A_QUEUE,
}


def _refusal(error: ValidationError) -> Problem:
    problems = {}
    for problem in error.errors(include_url=False, include_input=False):
        field = str(problem["loc"][0]) if problem["loc"] else "message"
        if problem["type"] == "missing":
            problems[field] = MISSING_FIELD(field=field)
        elif problem["type"] == "value_error":
            problems[field] = problem["ctx"]["error"].problem
        elif problem["type"] == "string_pattern_mismatch":
            problems[field] = NOT_A_BUCKET()
        elif field in WRONG_TYPE:
            problems[field] = WRONG_TYPE[field]()
        else:
            problems[field] = NOT_A_TEXT(field=field)
    return _refused(list(problems.values()))
