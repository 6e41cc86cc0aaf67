"""Everything that can be configured, read from the environment in this one place."""

from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, NoDecode

from splitter.errors import SetupError
from splitter.members import Limits
from splitter.messages import ReplyAddress, Request, RequestError


def _absolute(path: Path) -> Path:
    if not path.is_absolute():  # an empty one would be the working directory
        raise ValueError("must be an absolute path")
    return path


class Settings(BaseSettings):
    """The environment of one process; the README's table describes each variable."""

    batch_size: PositiveInt = 2000
    image_column: str = Field(default="imageName", min_length=1)
    efs_path: Annotated[Path, AfterValidator(_absolute)] = Path("/efs/batch")
    max_tmp_size: int = Field(default=7 * 1024**3, ge=0)
    max_expansion: PositiveInt = Limits.max_expansion
    max_members: PositiveInt = Limits.max_members
    max_name_bytes: PositiveInt = Limits.max_name_bytes
    max_in_memory: PositiveInt = Limits.max_in_memory
    max_cells: PositiveInt = Limits.max_cells
    split_strategy: Literal["auto", "splice", "extract"] = "auto"
    dask_scheduler: str | None = None
    splice_min_size: int = Field(default=64 * 1024**2, ge=0)
    verify: bool = False
    trigger_queue_url: str | None = None
    updates_queue_url: str | None = None
    # Prefect's API gives 200 runs at once; one that it did not give would pass for deleted.
    max_in_flight: int = Field(default=4, ge=1, le=200)
    max_attempts: PositiveInt = 3
    start_timeout: PositiveInt = 3600
    run_timeout: PositiveInt = 6 * 3600
    visibility_timeout: int = Field(default=300, ge=30, le=43_200)

    @property
    def limits(self) -> Limits:
        """What an export may be."""
        return Limits(**{field.name: getattr(self, field.name) for field in fields(Limits)})

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            SetupError: naming each variable whose value cannot be used.
        """
        try:
            return cls()
        except ValidationError as error:
            problems = (
                f"{str(problem['loc'][0]).upper()}={problem['input']!r}: {problem['msg']}"
                for problem in error.errors()
            )
            raise SetupError("; ".join(problems)) from error


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(pattern.strip() for pattern in text.split(",") if pattern.strip())


Patterns = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_patterns)]


class Allowed(BaseSettings):
    """What a trigger may name: shell patterns, separated by commas; unset allows all.

    Apart from the other settings, for there is no value that this one cannot use: whatever else is
    wrong, nothing is sent to a queue that is not allowed.
    """

    allowed_buckets: Patterns | None = None
    allowed_queues: Patterns | None = None

    def reply_address(self, message: Any) -> ReplyAddress | None:
        """Where the answer to a message may go; None if it names no usable or allowed place."""
        address = ReplyAddress.of(message)
        if address and _matches(address.updates_queue_url, self.allowed_queues):
            return address
        return None

    def check(self, request: Request) -> None:
        """Make sure that the operator allows what a request names.

        Raises:
            RequestError: naming the bucket or queue.
        """
        for field, value, patterns in (
            ("s3Bucket", request.s3_bucket, self.allowed_buckets),
            ("updatesQueueUrl", request.updates_queue_url, self.allowed_queues),
        ):
            if not _matches(value, patterns):
                raise RequestError(
                    f"The request for batches names '{value}' as its '{field}', which the batch "
                    "service is not allowed to use; correct it or ask the operator."
                )


def _matches(value: str, patterns: tuple[str, ...] | None) -> bool:
    return patterns is None or any(fnmatchcase(value, pattern) for pattern in patterns)
