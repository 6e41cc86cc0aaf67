"""Every regular expression that meets foreign text, each with inputs that are made to stall it.

The patterns are found, not listed, so that a new one is tried as well.
"""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import time
from collections import deque
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import splitter
from splitter import zooniverse
from splitter.archives import signatures

ROOT = Path(__file__).parent.parent.parent
BYTES = 32 * 1024
STARTS = {
    "splitter.archives.formats": signatures.START,
    "splitter.zooniverse.SVG": zooniverse.START,
}
"""Bytes of an input; fewer where a pattern is given the first bytes of a file only."""

SECONDS = 0.3
"""Of a processor for one input; a pattern that is quadratic takes longer."""

PATIENCE = 300
"""Seconds for all patterns; one that is exponential takes years for one input."""

UNITS = [
    *("<!---->", "<!--", "<!-- -->", "-->", "<?xml>", "<?", "<? ?>", "<!DOCTYPE svg"),
    *("<!DOCTYPE svg>", "<title>", "<title ", "<title>a</titl", "<Code>", "<Code>a", "<html", "<"),
    *('"', '""', '" "', ', "a"b', ' "', ',"', ", ", '"a"', '"a",', ",", " ", "  ,"),
    *("\r", "\n", "\r\n", "a", "a.", "sub", "subtotal", "totalesx", "_-. ", ".", "-", ".s3."),
    *("sqs.a.", "a.queue.", "sqs.", "a.jpg", ".jp", "x.jpgx", "/", "\\", ";", "\t|"),
    *("Error ", "Error -1", "memory", "é", "\0"),
]
PREFIXES = ["", "<svg", '"']
SUFFIXES = ["", "x"]


def compiled() -> dict[str, re.Pattern[str] | re.Pattern[bytes]]:
    """Every pattern of the splitter: a module's own, and those in calls of ``re``."""
    found: dict[str, re.Pattern[str] | re.Pattern[bytes]] = {}
    for module in pkgutil.walk_packages(splitter.__path__, "splitter."):
        loaded = importlib.import_module(module.name)
        for name, value in vars(loaded).items():
            if isinstance(value, re.Pattern):
                found[f"{module.name}.{name}"] = value
        for call in ast.walk(ast.parse(Path(str(loaded.__file__)).read_text())):
            if not isinstance(call, ast.Call) or not ast.unparse(call.func).startswith("re."):
                continue
            pattern = call.args[0]
            if ast.unparse(call.func) not in ("re.compile", "re.escape"):
                assert isinstance(pattern, ast.Constant), f"{module.name}: {ast.unparse(call)}"
                value = re.compile(pattern.value, re.IGNORECASE | re.DOTALL)
                found[f"{module.name}: {pattern.value!r}"] = value
    return found


def test_no_foreign_text_stalls_a_pattern() -> None:
    # In a process of its own, as nothing in this one could stop it.
    command = [sys.executable, "-c", f"import {__name__} as tests; tests.attack_all()"]
    try:
        subprocess.run(command, cwd=ROOT, timeout=PATIENCE, check=True, stdout=subprocess.PIPE)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"stalled: {(error.stdout or b'').decode().splitlines()[-1]}")


def attack_all() -> None:
    """Attack every pattern, after its name is printed."""
    for name, pattern in compiled().items():
        print(name, flush=True)
        attack(name, pattern)


def attack(name: str, pattern: Any) -> None:
    """Give every input to a pattern, by the methods that the splitter calls."""
    number = next((STARTS[begin] for begin in STARTS if name.startswith(begin)), BYTES)
    for prefix, unit, suffix in product(PREFIXES, UNITS, SUFFIXES):
        text = prefix + unit * (number // len(unit)) + suffix
        given = text if isinstance(pattern.pattern, str) else text.encode()
        began = time.process_time()
        for method in methods(name):
            match method:
                case "sub":
                    pattern.sub(given[:0], given)
                case "finditer":
                    deque(pattern.finditer(given), maxlen=0)
                case _:
                    getattr(pattern, method)(given)
        assert time.process_time() - began < SECONDS, (name, prefix, unit, suffix)


def methods(name: str) -> set[str]:
    """The methods of a pattern that are called; a search goes on where a match gives up."""
    module, _, variable = name.rpartition(".")
    if ": " in name:
        return {"search"}
    source = Path(str(importlib.import_module(module).__file__)).read_text()
    return set(re.findall(rf"\b{variable}\.(match|fullmatch|search|sub|split|finditer)\(", source))
