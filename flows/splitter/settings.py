"""Everything that can be configured, read from the environment in this one place."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, ValidationError
from pydantic_settings import BaseSettings

from flows.splitter.archive import MAX_EXPANSION
from flows.splitter.errors import SetupError


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
    max_expansion: PositiveInt = MAX_EXPANSION
    split_strategy: Literal["auto", "splice", "extract"] = "auto"
    splice_min_size: int = Field(default=64 * 1024**2, ge=0)
    verify: bool = False
    trigger_queue_url: str | None = None
    # Prefect's API gives 200 runs at once; one that it did not give would pass for deleted.
    max_in_flight: int = Field(default=4, ge=1, le=200)
    max_attempts: PositiveInt = 3
    start_timeout: PositiveInt = 3600
    visibility_timeout: int = Field(default=300, ge=30, le=43_200)

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
