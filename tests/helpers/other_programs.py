"""Other programs that read ZIPs, as far as they are installed: each must accept every batch.

The two readers in ``readers/`` are built once. Names are UTF-8 in all of them.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.shared import shared_file

READERS = Path(__file__).parent / "readers"
UTF_8 = {**os.environ, "LC_ALL": "C.UTF-8"}
PATIENCE = 300
"""Seconds; a compiler on a busy machine takes some tens."""

COMMANDS: Mapping[str, Sequence[str]] = {
    "unzip": ["unzip", "-tqq"],
    "7z": ["7z", "t", "-bso0", "-bsp0"],
    "bsdtar": ["bsdtar", "-tf"],
    "bsdtar, from a pipe": ["bsdtar", "-xOf", "-"],  # by the local headers
    "java": ["java", "-cp"],
    "go": ["go"],
    "python": [sys.executable, "-m", "zipfile", "-t"],
}


def is_installed(program: str) -> bool:
    """Whether a program of ``COMMANDS`` can be run here."""
    tools = [COMMANDS[program][0], *(["javac"] if program == "java" else [])]
    return all(map(shutil.which, tools))


def accepted(path: Path) -> Iterator[str]:
    """The names of the programs that accept a ZIP, which is every one that is installed.

    Raises:
        AssertionError: if a program refuses it, or has something to say about it.
    """
    for program in COMMANDS:
        if is_installed(program):
            accepts(program, path)
            yield program


def accepts(program: str, path: Path) -> None:
    """Run a program on a ZIP; skip the test if it is not installed.

    Raises:
        AssertionError: if it refuses the ZIP, or has something to say about it.
    """
    if not is_installed(program):
        pytest.skip(f"{program} is not installed")
    command = [*COMMANDS[program], str(path)]
    if program == "java":
        command = ["java", "-cp", str(_java()), "Read", str(path)]
    elif program == "go":
        command = [str(_go()), str(path)]
    piped = command[-2] == "-"
    with path.open("rb") as stream:
        outcome = subprocess.run(
            command[:-1] if piped else command,
            stdin=stream if piped else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if piped else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=UTF_8,
            timeout=PATIENCE,
        )
    printed = (program, outcome.stderr, outcome.stdout)
    assert outcome.returncode == 0, printed
    assert not outcome.stderr, printed
    with zipfile.ZipFile(path) as zip_:
        assert len(zip_.namelist()) == len(set(zip_.namelist()))


@cache
def _java() -> Path:
    return shared_file(
        "java", lambda made: _run(["javac", "-d", str(made), str(READERS / "Read.java")])
    )


@cache
def _go() -> Path:
    return shared_file(
        "go", lambda made: _run(["go", "build", "-o", str(made), str(READERS / "read.go")])
    )


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE, env=UTF_8)
