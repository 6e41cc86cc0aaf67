"""Every failure that people see is a declared sentence; no error is raised with loose text."""

import ast
import importlib
from collections import Counter
from pathlib import Path
from pkgutil import walk_packages

import blocks
import flows
import splitter
from splitter.errors import SentenceError

ROOT = Path(__file__).parent.parent.parent


def error_names() -> set[str]:
    """The names of all classes of errors that have a declared sentence."""
    for room in (splitter, blocks, flows):
        for module in walk_packages(room.__path__, f"{room.__name__}."):
            importlib.import_module(module.name)
    found, new = {SentenceError}, [SentenceError]
    while new:
        for subclass in new.pop().__subclasses__():
            if subclass not in found:
                found.add(subclass)
                new.append(subclass)
    return {each.__name__ for each in found}


def is_text(argument: ast.expr) -> bool:
    """Whether an argument is text: a literal, an f-string, a sum, or a method of a string."""
    match argument:
        case ast.Constant() | ast.JoinedStr() | ast.BinOp():
            return True
        case ast.IfExp():
            return is_text(argument.body) or is_text(argument.orelse)
        case ast.Call():
            called = ast.unparse(argument.func)
            return called == "str" or called.endswith((".join", ".format"))
    return False


def undeclared() -> dict[str, int]:
    """How many errors each file raises with a text in place of a declared sentence."""
    names = error_names()
    found: Counter[str] = Counter()
    for room in ("splitter", "blocks", "flows"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in names:
                    found[str(path.relative_to(ROOT))] += bool(node.args and is_text(node.args[0]))
    return {file: number for file, number in found.items() if number}


def test_every_error_has_a_declared_sentence() -> None:
    assert undeclared() == {}


def test_the_walk_finds_loose_text() -> None:
    texts = ['"a"', 'f"a {b}"', '"a" + b', "str(b)", '"".join(b)', '"a" if b else c']
    for text in (f"E({text})" for text in texts):
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        assert is_text(call.args[0]), text
    declared = ast.parse("E(NO_BUCKET, bucket=name)", mode="eval").body
    assert isinstance(declared, ast.Call)
    assert not is_text(declared.args[0])
