"""Reads all settings from the environment."""

from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode

from splitter.archives import Limits
from splitter.errors import SetupError
from splitter.messages import ReplyAddress, Request, RequestError
from splitter.sentences import Actor, Sentence, shown


def _absolute(path: Path) -> Path:
    if not path.is_absolute():  # an empty path would mean the working directory
        raise ValueError("must be an absolute path")
    return path


# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html: 10,000 parts of 5 GiB.
MAX_OBJECT = 10_000 * 5 * 1024**3
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html:
# SQS keeps messages for at most 14 days, so no export waits longer.
MAX_WAIT = 14 * 24 * 3600

AbsolutePath = Annotated[Path, AfterValidator(_absolute)]

BAD_SETTINGS = Sentence(
    "settings.bad-value",
    "These settings cannot be used: {problems:bare}.",
    Actor.OPERATOR,
    "Correct these variables where the service or the work pool is configured, then press Retry.",
)


def _not_allowed(noun: str, field: str, variable: str) -> Sentence:
    return Sentence(
        f"request.{noun}-not-allowed",
        f"The request for batches names {{value:long}} as its '{field}', which the batch service "
        "is not allowed to use; please tell the operator.",
        Actor.OPERATOR,
        f"If BIOSPEX may use this {noun}, add it to {variable}, then press Retry.",
    )


BUCKET_NOT_ALLOWED = _not_allowed("bucket", "s3Bucket", "ALLOWED_BUCKETS")
QUEUE_NOT_ALLOWED = _not_allowed("queue", "updatesQueueUrl", "ALLOWED_QUEUES")


class Settings(BaseSettings, use_attribute_docstrings=True):
    """The settings of one process; docs/configuration.md has the same table."""

    batch_size: int = Field(default=2000, ge=1, le=1_000_000)
    """rows in a batch"""
    image_column: str = Field(default="imageName", min_length=1)
    """the manifest's column with the images' names"""
    split_strategy: Literal["auto", "splice", "extract"] = "auto"
    """`auto`, `splice` or `extract`: the lane; `auto` takes the faster one that the archive
    allows"""
    splice_min_size: int = Field(default=64 * 1024**2, ge=0, le=MAX_OBJECT)
    """bytes; `auto` extracts ZIPs up to this size, which checks every image"""
    verify: bool = False
    """read each spliced batch back and check every image"""
    efs_path: AbsolutePath = Path("/efs/batch")
    """mounted directory for archives above `MAX_TMP_SIZE`; never created"""
    max_tmp_size: int = Field(default=7 * 1024**3, ge=0, le=MAX_OBJECT)
    """bytes; archives up to this size are extracted in `TMPDIR`"""
    dask_scheduler: str | None = None
    """`tcp://host:8786`: batches of exports on EFS are made on [several machines](scale.md)"""
    trigger_queue_url: str | None = None
    """the queue of the triggers; the listener needs it"""
    updates_queue_url: str | None = None
    """the callback queue of `make submit ANSWER=1`"""
    # Prefect's API returns at most 200 runs; further runs would appear to be deleted.
    max_in_flight: int = Field(default=4, ge=1, le=200)
    """exports at a time"""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """attempts at an export whose run crashes or meets an outage; then a failure callback is
    sent"""
    start_timeout: int = Field(default=3600, ge=1, le=MAX_WAIT)
    """seconds that a run may wait for a machine; then a failure callback is sent"""
    run_timeout: int = Field(default=6 * 3600, ge=1, le=MAX_WAIT)
    """seconds that one attempt may take; then it is cancelled and a failure callback is sent"""
    visibility_timeout: int = Field(default=300, ge=30, le=43_200)
    """seconds after which a trigger is delivered again if its listener has died"""
    biospex_environment: str | None = None
    """`prod`, `dev` or another word: a tag of every run"""
    bucket_owner: str | None = Field(default=None, pattern=r"^[0-9]{12}$")
    """the AWS account that must own the bucket, 12 digits; S3 then refuses buckets of other
    accounts; unset allows any owner"""
    presigned_links: bool = True
    """link each batch on the run page for 72 hours, if the credentials last that long; else link
    its page in the AWS console"""
    max_expansion: int = Field(default=Limits.max_expansion, ge=1, le=100_000)
    """unpacked size of an archive as a multiple of its own size; 64 MiB are always allowed"""
    max_members: int = Field(default=Limits.max_members, ge=1, le=100_000_000)
    """files in an archive"""
    max_name_bytes: int = Field(default=Limits.max_name_bytes, ge=1, le=65_535)
    """bytes of a file's name"""
    max_in_memory: int = Field(default=Limits.max_in_memory, ge=1, le=2**32)
    """bytes of the manifest, and bytes of a ZIP's table of contents"""
    max_cells: int = Field(default=Limits.max_cells, ge=1, le=1_000_000_000)
    """cells of the manifest"""
    max_columns: int = Field(default=Limits.max_columns, ge=1, le=100_000)
    """columns of the manifest"""

    @property
    def limits(self) -> Limits:
        return Limits(**{field.name: getattr(self, field.name) for field in fields(Limits)})

    @classmethod
    def load(cls, **values: Any) -> Self:
        """Read the environment; ``values`` by field override it.

        Raises:
            SetupError: names each variable with an invalid value.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            problems = (
                f"{str(problem['loc'][0]).upper()}={shown(str(problem['input']))}: {problem['msg']}"
                for problem in error.errors()
            )
            raise SetupError(BAD_SETTINGS, problems=list(problems)) from error


class Docs(BaseSettings, use_attribute_docstrings=True):
    """The address of the docs. Separate from ``Settings``, whose errors link to the docs."""

    docs_url: str | None = None
    """web address of the folder `docs`; run pages, deployments and blocks link to its pages"""

    def page(self, name: str) -> str:
        """Markdown that links or names a page of docs/."""
        address = self.address(name)
        return f"[{name}]({address})" if address else f"docs/{name} in the repository"

    def address(self, name: str) -> str | None:
        """The address of a page of docs/, if ``DOCS_URL`` is set."""
        url = self.docs_url or ""
        is_address = urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname
        return f"{url.rstrip('/')}/{name}" if is_address else None


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(pattern.strip() for pattern in text.split(",") if pattern.strip())


Patterns = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_patterns)]


class Allowed(BaseSettings, use_attribute_docstrings=True):
    """Buckets and queues that a trigger may name: shell patterns, separated by commas.

    In a queue's URL, ``*`` matches neither a slash nor a dot of the host, so a pattern for one name
    never matches another host or account.

    Separate from ``Settings``, because every value is valid here: even if another setting is wrong,
    nothing is sent to a queue that is not allowed.
    """

    allowed_buckets: Patterns | None = None
    """buckets that a trigger may name, such as `biospex-app`, separated by commas; a pattern such
    as `biospex-*` also allows buckets of other people; unset allows all"""
    allowed_queues: Patterns | None = None
    """callback queues that a trigger may name: URLs, or patterns in which `*` stays within one
    name; nothing is sent to other queues; unset allows all"""

    def reply_address(self, message: Any) -> ReplyAddress | None:
        """The address for the callback; None if the message names no valid, allowed queue."""
        address = ReplyAddress.of(message)
        if address and _is_queue_allowed(address.updates_queue_url, self.allowed_queues):
            return address
        return None

    def check(self, request: Request) -> None:
        """Raise ``RequestError`` if the bucket or the queue of a request is not allowed."""
        bucket, queue = request.s3_bucket, request.updates_queue_url
        buckets = self.allowed_buckets
        if buckets is not None and not any(fnmatchcase(bucket, pattern) for pattern in buckets):
            raise RequestError(BUCKET_NOT_ALLOWED, value=bucket)
        if request.wants_answer and not _is_queue_allowed(queue, self.allowed_queues):
            raise RequestError(QUEUE_NOT_ALLOWED, value=queue)


def _is_queue_allowed(url: str, patterns: tuple[str, ...] | None) -> bool:
    return patterns is None or any(
        len(_pieces(url)) == len(_pieces(pattern))
        and all(map(fnmatchcase, _pieces(url), _pieces(pattern)))
        for pattern in patterns
    )


def _pieces(url: str) -> list[str]:
    """The parts of a URL; a pattern's ``*`` matches within one of them."""
    scheme, _, rest = url.partition("://")
    host, *path = rest.split("/")
    # The slash separates host and path: one dot more must not compensate for one slash less.
    return [scheme, *host.split("."), "/", *path]
