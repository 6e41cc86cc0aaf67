"""The SQS messages on either side: the trigger that comes in, the callback that goes out.

The wire's camelCase names stop here.
"""

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from splitter.corrections import corrected
from splitter.errors import ExportError, SetupError

ARCHIVE_SUFFIXES = (".zip", ".tar.gz", ".tgz", ".tar")

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
BUCKET_NAME = r"^[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]$"
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
MAX_KEY_BYTES = 1024
MAX_FILE_BYTES = MAX_KEY_BYTES - len("batch/-part10000.zip")
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
# SQS takes 1 MiB today; a queue made earlier takes 256 KiB unless it has been changed.
MAX_CALLBACK_BYTES = 256 * 1024

# Nothing that BIOSPEX sends comes near: a trigger has six short fields.
MAX_TRIGGER_BYTES = 16 * 1024
MAX_TRIGGER_DEPTH = 8
MAX_LABEL = 200
# What Prefect's API and PostgreSQL take for a number.
MAX_INTEGER = 2**63 - 1

CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


class RequestError(ExportError):
    """A trigger message that cannot be carried out; the message names the field."""


def _key(value: str) -> str:
    if CONTROL_CHARACTER.search(value):
        raise ValueError("must not contain control characters")
    if len(value.encode()) > MAX_KEY_BYTES:
        raise ValueError(f"must not be longer than {MAX_KEY_BYTES} bytes")
    return value


def _export_path(value: str) -> str:
    if "://" in value:
        raise ValueError(
            "must be the key of an archive in the bucket of the request, such as export/….zip, and "
            "not the address of another place"
        )
    return value


def _file_name(value: str) -> str:
    if "/" in value or "\\" in value or ".." in value:
        raise ValueError("must be a plain file name, without a slash or '..'")
    if not archive_stem(value).strip():
        raise ValueError("must have a name in front of its extension")
    if len(value.encode()) > MAX_FILE_BYTES:
        raise ValueError(f"must not be longer than {MAX_FILE_BYTES} bytes")
    return value


def _queue_url(value: str) -> str:
    address = urlsplit(value)
    if (
        address.scheme not in ("http", "https")
        or not address.hostname
        or address.username is not None
        or address.query
        or address.fragment
        or ".." in address.path
        or CONTROL_CHARACTER.search(value)
    ):
        raise ValueError("must be the http(s) URL of an SQS queue")
    return value


# JSON has no NaN and no infinity; Python's parser takes them, BIOSPEX's does not.
Number = Annotated[StrictFloat, Field(allow_inf_nan=False)]
DownloadId = StrictInt | Number | StrictBool | StrictStr
QueueUrl = Annotated[str, AfterValidator(_queue_url)]
Key = Annotated[str, Field(min_length=1), AfterValidator(_key)]


NOBODY = ""
"""In place of a callback queue, in a request of a person; a trigger cannot say it."""


class WireModel(BaseModel):
    """A message whose names on the wire are camelCase and whose unknown fields are ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        field_title_generator=lambda name, _: to_camel(name),
        validate_by_name=True,
        frozen=True,
    )


class ReplyAddress(WireModel):
    """The part of a request that an answer needs, usable even where the rest is not."""

    download_id: DownloadId = Field(
        description="Id of the download record, such as 512; comes back unchanged in the callback.",
        examples=[512],
    )
    updates_queue_url: QueueUrl = Field(
        description="SQS queue that is told of the outcome, such as "
        "https://sqs.us-east-2.amazonaws.com/000000000000/prod-batch-update.",
        examples=["https://sqs.us-east-2.amazonaws.com/000000000000/prod-batch-update"],
    )

    @classmethod
    def of(cls, message: Any) -> "ReplyAddress | None":
        """Where the answer to ``message`` goes, or None if it names no usable place."""
        if isinstance(message, ReplyAddress):
            return message if message.updates_queue_url != NOBODY else None
        try:
            return ReplyAddress.model_validate(corrected(message)[0])
        except ValidationError:
            return None


class Request(ReplyAddress):
    """One export, as BIOSPEX's trigger message states it; by hand, press *str*: s3://bucket/key."""

    _corrections: list[str] = PrivateAttr(default_factory=list)

    file: Annotated[Key, AfterValidator(_file_name)] = Field(
        description="File name of the archive, which names the batches, such as "
        "41-2-3f2a8d1c-5b7e-4c1a-9e2d-7a6b5c4d3e2f.zip.",
        examples=["41-2-3f2a8d1c-5b7e-4c1a-9e2d-7a6b5c4d3e2f.zip"],
    )
    export_path: Annotated[Key, AfterValidator(_export_path)] = Field(
        description="S3 key of the archive, such as "
        "export/41-2-3f2a8d1c-5b7e-4c1a-9e2d-7a6b5c4d3e2f.zip.",
        examples=["export/41-2-3f2a8d1c-5b7e-4c1a-9e2d-7a6b5c4d3e2f.zip"],
    )
    total_size: int | None = Field(
        default=None,
        ge=0,
        description="Bytes of the archive as sent, such as 2456719374; a difference from "
        "the object itself is only remarked on.",
        examples=[2456719374],
    )
    s3_bucket: str = Field(
        pattern=BUCKET_NAME,
        description="Bucket of the archive and of the batches, such as biospex-app.",
        examples=["biospex-app"],
    )

    @classmethod
    def parse(cls, message: Any) -> Self:
        """Check a trigger message, a dict with the wire's names or a ``Request``.

        Raises:
            RequestError: naming every wrong or missing field.
        """
        if flaw := find_flaw(message):
            raise RequestError(flaw)
        fields, corrections = corrected(message)
        try:
            request = cls.model_validate(fields)
        except ValidationError as error:
            raise RequestError(_refusal(error)) from None
        if corrections:
            request._corrections = corrections
        return request

    @classmethod
    def by_hand(cls, address: str) -> Self:
        """The request that a person means by ``s3://bucket/key``; nobody gets a callback.

        Raises:
            RequestError: if it is no such address.
        """
        request = cls.parse(spelled_out(address, "https://nobody.invalid/"))
        return request.model_copy(update={"updates_queue_url": NOBODY})

    @property
    def wants_answer(self) -> bool:
        """Whether a callback queue is to be told of the outcome."""
        return self.updates_queue_url != NOBODY

    @property
    def corrections(self) -> list[str]:
        """Sentences on the fields that were read otherwise than they were written."""
        return self._corrections

    @property
    def stem(self) -> str:
        """``file`` without its archive extension."""
        return archive_stem(self.file)

    def batch_file(self, part: int) -> str:
        """File name of batch number ``part``, counted from 1."""
        return f"{self.stem}-part{part}.zip"

    def batch_key(self, part: int) -> str:
        """S3 key of batch number ``part``."""
        return f"batch/{self.batch_file(part)}"


class Result(WireModel):
    """The callback of an export that was split: every batch, in order, as a file name."""

    function: Literal["BiospexBatchCreator"] = "BiospexBatchCreator"
    status: Literal["success"] = "success"
    download_id: DownloadId
    batch_files: list[str]

    @classmethod
    def of(cls, request: Request, batches: int) -> Self:
        """The callback that names so many batches of an export.

        Raises:
            SetupError: if they are too many to be named in one message.
        """
        files = [request.batch_file(part) for part in range(1, batches + 1)]
        result = cls(download_id=request.download_id, batch_files=files)
        if len(to_json(result)) > MAX_CALLBACK_BYTES:
            raise SetupError(
                f"{batches:,} batches are more than one message to BIOSPEX can name "
                f"({MAX_CALLBACK_BYTES:,} bytes); BATCH_SIZE is too small."
            )
        return result


class Failure(WireModel):
    """The callback of an export that was not split: one sentence for a project manager."""

    function: Literal["BiospexBatchCreator"] = "BiospexBatchCreator"
    status: Literal["failed"] = "failed"
    download_id: DownloadId
    error: str


def parse_body(body: str) -> Any:
    """A trigger's JSON; None for what is none: JavaScript's NaN, half a surrogate pair."""
    try:
        message = json.loads(body, parse_constant=_refuse_number, parse_float=_finite)
        json.dumps(message, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return message


RESERVED = "__"
"""Begins the names by which Prefect knows what to evaluate, as it would of a run that a person
copies in its UI; no field of BIOSPEX has such a name."""


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if isfinite(number) else _refuse_number(text)


def find_flaw(message: Any) -> str | None:
    """A sentence about what makes a message one that no service should be given, if it is one.

    That is what may be refused by a database or an API on the way, or fill them: PostgreSQL's jsonb
    takes no U+0000 (https://www.postgresql.org/docs/current/datatype-json.html).
    """
    if isinstance(message, Request):
        return None
    if len(json.dumps(message, default=str)) > MAX_TRIGGER_BYTES:
        return _flaw(f"it is longer than {MAX_TRIGGER_BYTES:,} bytes")
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
                return _flaw("the name of a field has a control character")
            if str(key).startswith(RESERVED):
                return _flaw(f"the name of a field begins with '{RESERVED}'")
            open_values.append((str(key) if depth == 0 else field, depth + 1, element))
        if depth > MAX_TRIGGER_DEPTH:
            return _flaw(f"'{field}' is nested too deeply")
        if _has_control(value):
            return _flaw(f"'{field}' must not contain control characters")
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            return _flaw(f"'{field}' is too large a number")
    return None


def _has_control(value: Any) -> bool:
    return isinstance(value, str) and CONTROL_CHARACTER.search(value) is not None


def _flaw(problem: str) -> str:
    return (
        f"The request for batches cannot be carried out: {problem}; ask for them again, and if "
        "that fails too, tell BIOSPEX's administrator."
    )


def spelled_out(address: str, updates_queue_url: str, download_id: str | None = None) -> Any:
    """The request that a person means by ``s3://bucket/key``; never what a trigger may be.

    Args:
        updates_queue_url: where the answer goes.
        download_id: what the callback names; the time, if there is none.

    Raises:
        RequestError: if it is no such address.
    """
    parts = urlsplit(address)
    key = parts.path.removeprefix("/")
    if parts.scheme != "s3" or not parts.netloc or not key:
        raise RequestError(
            f"The request {address[:200]!r} is no address of an archive; write it like "
            "s3://biospex-app/export/41.zip."
        )
    return {
        "downloadId": download_id or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}",
        "file": key.rpartition("/")[2],
        "exportPath": key,
        "s3Bucket": parts.netloc,
        "updatesQueueUrl": updates_queue_url,
    }


def archive_stem(file: str) -> str:
    """``file`` without ``.zip``, ``.tar.gz``, ``.tgz`` or ``.tar``."""
    for suffix in ARCHIVE_SUFFIXES:
        if file.lower().endswith(suffix):
            return file[: -len(suffix)]
    return file


def title(message: Any) -> str:
    """The download and the archive that a message is about, as far as it says so.

    The download's id comes first, since Prefect's UI cuts long names off.
    """
    address = ReplyAddress.of(message)
    wanted = message.model_dump(by_alias=True) if isinstance(message, Request) else message
    file = wanted.get("file") if isinstance(wanted, dict) else None
    download = address.download_id if address else "?"
    return f"download {printable(download)}: {printable(file or 'unnamed export')}"


def printable(value: Any) -> str:
    """A value for a label: short, and without what a database refuses."""
    return CONTROL_CHARACTER.sub("\ufffd", str(value))[:MAX_LABEL]


def to_json(message: Request | Result | Failure) -> str:
    """The body of a message, with the wire's names; ASCII, as SQS refuses some characters."""
    return json.dumps(message.model_dump(by_alias=True))


def _refusal(error: ValidationError) -> str:
    problems = {}
    for problem in error.errors(include_url=False):
        field = str(problem["loc"][0]) if problem["loc"] else "message"
        if problem["type"] == "missing":
            problems[field] = f"'{field}' is missing"
        elif problem["type"] == "value_error":
            problems[field] = f"'{field}' {problem['ctx']['error']}"
        elif field == to_camel("download_id"):
            problems[field] = f"'{field}' must be a number or a text"
        elif problem["type"] == "string_pattern_mismatch":
            problems[field] = f"'{field}' is not the name of a bucket, such as biospex-app"
        elif problem["type"] in ("string_type", "string_too_short"):
            problems[field] = f"'{field}' must be a text, and not an empty one"
        else:
            problems[field] = f"'{field}': {problem['msg'][:1].lower()}{problem['msg'][1:]}"
    return _flaw("; ".join(problems.values()))
