"""Parses the trigger messages and writes the callback messages of SQS.

Only this module uses the wire's camelCase names. Every trigger passes the same checks in the same
order: length of the body and JSON (``parse_body``), size, depth and characters (``find_flaw``),
fields (``Request.parse``). Checks that take more than linear time come after length checks;
``ReplyAddress.of`` limits its own two fields.
"""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

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
from splitter.sentences import Actor, Problem, Sentence, Words, escaped

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

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

QUEUE_URL = re.compile(
    r"https?://(?:[a-z0-9._-][a-z0-9._:-]*|\[[0-9a-f:.]+\](?::[a-z0-9._-]*)?)"
    r"(?:/(?:\.?[a-z0-9_:/\[\]-])*\.?)?",
    re.IGNORECASE | re.ASCII,
)
"""The URL of a queue, without ``..`` in its path. Without the percent sign, because an encoded
slash would match a pattern of ALLOWED_QUEUES."""

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
TOO_LONG = _sentence("too-long", "{field} must not be longer than {limit} bytes")
TOO_DEEP = _sentence("too-deep", "{field} is nested too deeply")
RESERVED_NAME = _sentence(
    "reserved-name", "the name of a field has a control character or begins with '__'"
)
CONTROL_IN_VALUE = _sentence(
    "control-character", "{field} must not contain control or direction characters"
)
NUMBER_TOO_LARGE = _sentence("number-too-large", "{field} is too large a number")
NOT_AN_OBJECT = _sentence("not-an-object", "it is not a JSON object with fields")
MISSING_FIELD = _sentence("missing-field", "{field} is missing")
NOT_A_TEXT = _sentence("not-a-text", "{field} must be a non-empty text")
NOT_A_FILE_NAME = _sentence(
    "not-a-file-name",
    "'file' must be a plain file name, without a slash or '..', and have a name in front of its "
    "extension",
)
NOT_A_KEY = _sentence(
    "not-a-key",
    "'exportPath' must be the key of an archive in the bucket of the request, such as "
    "export/41.zip, {rule}",
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
# It names no callback queue, so it becomes a dead letter.
WRAPPED = Sentence(
    "request.wrapped",
    "it is {origin}",
    Actor.OPERATOR,
    "Change the setting in the AWS console, then send the request again.",
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


def _queue_url(url: str) -> str:
    if len(url) > MAX_QUEUE_URL or not QUEUE_URL.fullmatch(url):
        raise RequestError(NOT_A_QUEUE)
    return url


# JSON has no NaN and no infinity. Python's parser accepts them, BIOSPEX's parser does not.
Number = Annotated[StrictFloat, Field(allow_inf_nan=False)]
ShortText = Annotated[StrictStr, Field(max_length=MAX_TRIGGER_BYTES)]
DownloadId = StrictInt | Number | StrictBool | ShortText

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
    updates_queue_url: Annotated[str, AfterValidator(_queue_url)] = Field(examples=[EXAMPLE_QUEUE])
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

    file: str = Field(min_length=1, examples=[EXAMPLE_FILE])
    """File name of the archive, which names the batches, such as
    41-2-3f2a8d1c-5b7e-4c1a-9e2d-7a6b5c4d3e2f.zip."""
    export_path: str = Field(min_length=1, examples=[f"export/{EXAMPLE_FILE}"])
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

    @field_validator("file", "export_path")
    @classmethod
    def _check_name(cls, text: str, info: ValidationInfo) -> str:
        field = to_camel(info.field_name or "")
        limit = MAX_FILE_BYTES if field == "file" else MAX_KEY_BYTES
        if _size(text) > limit:
            raise RequestError(TOO_LONG, field=field, limit=limit)
        if escaped(text, limit) != text:  # the callback and pages show it
            raise RequestError(CONTROL_IN_VALUE, field=field)
        if field == "exportPath":
            _check_key(text, info.data.get("file", text))
        elif any(part in text for part in ("/", "\\", "..")) or not archive_stem(text).strip():
            raise RequestError(NOT_A_FILE_NAME)
        return text

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


def _check_key(key: str, file: str) -> None:
    rule = ""
    if "://" in key:
        rule = "and not an address"
    elif key.startswith(BATCH_FOLDER):
        rule = "and not in the folder batch/, which is where the batches are put"
    # Otherwise a request could overwrite the batches of another archive.
    elif key != file and not key.endswith(f"/{file}"):
        rule = "and must end in the file name of the archive, after a slash"
    if rule:
        raise RequestError(NOT_A_KEY, rule=Words(rule))


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
        message = json.loads(body)
        json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return message


def find_wrapping(message: Any) -> Problem | None:
    """The sentence about an AWS service that wrapped a request or sent its own event."""
    if not isinstance(message, dict) or "downloadId" in message:
        return None
    origin = ""
    records = message.get("Records")
    first = records[0] if isinstance(records, list) and records else None
    if message.get("Type") == "Notification" and "TopicArn" in message:
        # https://docs.aws.amazon.com/sns/latest/dg/sns-sqs-as-subscriber.html
        origin = (
            "a notification of SNS, which holds the request as text in 'Message': switch on raw "
            "message delivery in the queue's subscription"
        )
    elif "detail-type" in message and "detail" in message:
        # https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-events-structure.html
        origin = (
            "an event of EventBridge, which holds the request in 'detail': set the input of the "
            "rule's target to the part $.detail of the event"
        )
    elif message.get("Event") == "s3:TestEvent" or (
        isinstance(first, dict) and first.get("eventSource") == "aws:s3"
    ):
        # https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html
        origin = (
            "an event notification of an S3 bucket and no request: remove the trigger queue from "
            "the event notifications of the bucket"
        )
    return WRAPPED(origin=Words(origin)) if origin else None


def find_flaw(message: Any) -> Problem | None:
    """The reason why a message must not be passed to another service, or None.

    Prefect's API or its database may refuse it or fill up. For example, PostgreSQL's jsonb refuses
    U+0000 (https://www.postgresql.org/docs/current/datatype-json.html).
    """
    if isinstance(message, Request):
        return None
    try:
        # In UTF-8; the body may be longer because of escapes.
        size = _size(json.dumps(message, default=str, ensure_ascii=False))
    except RecursionError:
        size = MAX_BODY_BYTES
    if size > MAX_TRIGGER_BYTES:
        return _refused([TOO_LONG(field=Words("the message"), limit=MAX_TRIGGER_BYTES)])
    problem = find_wrapping(message) or _find_problem("message", message)
    return _refused([problem]) if problem else None


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _find_problem(field: str, value: Any, depth: int = 0) -> Problem | None:
    names = value if isinstance(value, dict) else ()
    if any(_is_reserved(str(name)) for name in names):
        return RESERVED_NAME()
    if depth > MAX_TRIGGER_DEPTH:
        return TOO_DEEP(field=field)
    if isinstance(value, str) and CONTROL.search(value):
        return CONTROL_IN_VALUE(field=field)
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return NUMBER_TOO_LARGE(field=field)
    inner = [(str(name) if depth == 0 else field, value[name]) for name in names]
    if isinstance(value, list):
        inner = [(field, each) for each in value]
    return next(filter(None, (_find_problem(*pair, depth + 1) for pair in inner)), None)


def _is_reserved(name: str) -> bool:
    # Prefect evaluates names with this prefix when a person copies a run in the UI. BIOSPEX does
    # not use it.
    return name.startswith("__") or CONTROL.search(name) is not None


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
    suffix = next((end for end in ARCHIVE_SUFFIXES if file.lower().endswith(end)), "")
    return file[: len(file) - len(suffix)]


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
    "s3Bucket": NOT_A_BUCKET,
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
        else:
            problems[field] = WRONG_TYPE.get(field, NOT_A_TEXT)(field=field)
    return _refused(list(problems.values()))
