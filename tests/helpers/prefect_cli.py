"""Prefect's command line in this process, because a new process takes seconds to start."""

from contextlib import chdir
from pathlib import Path

from prefect.testing.cli import CycloptsCliRunner

ROOT = Path(__file__).parent.parent.parent


def prefect(*arguments: str, directory: Path = ROOT) -> None:
    """Run ``prefect`` in a directory, and assert that it succeeds."""
    with chdir(directory):
        done = CycloptsCliRunner().invoke(["--no-prompt", *arguments])
    assert done.exit_code == 0, done.output
