"""Write docs/messages.md: every sentence with which an export can fail, as the code has them.

``python -m cli.messages`` writes the page anew; a test compares the two.

A sentence is read off the code as far as that goes: through the functions that put it together,
both ways of an ``if`` and constants. What is only known when it happens has a name in ``WORDS``.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "messages.md"
ROOMS = ("splitter", "blocks", "flows")

GROUPS = {
    "RequestError": "The request",
    "ObjectError": "The export in S3",
    "ArchiveError": "The archive",
    "ManifestError": "The manifest",
    "Any": "What may pass, and what nobody foresaw",
    "SetupError": "The batch service itself",
}
"""Whose sentences stand under which heading, in the page's order."""

RAISED = {**{name: name for name in GROUPS}, "CallbackError": "SetupError", "give_up": "Any"}
"""What is called with a sentence, and whose that is."""

FRAGMENTS: Mapping[str, tuple[str, str]] = {
    "what is wrong with the request": (
        "RequestError",
        "messages.find_flaw messages._refusal messages._key messages._export_path "
        "messages._file_name messages._queue_url",
    ),
    "what is wrong with the file": (
        "ManifestError",
        "members._unsafe members.claim zip_index._why_unusable tar_archive._why_not",
    ),
    "what is wrong with each row": ("ManifestError", "manifest.check_images manifest_text.note"),
    "what the archive has instead": ("ManifestError", "manifest_images.instead"),
    "how the names differ": ("ManifestError", "manifest_images._why"),
}
"""What stands in the middle of sentences: under whose heading, and the functions that say it."""

MADE_BY = (
    "_cut_off",
    "_flaw",
    "_not_utf8",
    "_refusal",
    "_separated_by",
    "_separator_fault",
    "_without_column",
    "give_up",
    "refusal",
    "total_line",
)
"""Functions that put sentences together."""

WORDS: Mapping[str, str | None] = {
    "'; '.join(problems)": "what is wrong with each row",
    "'; '.join(problems.values())": "what is wrong with the request",
    "MAX_CALLBACK_BYTES": "number",
    "MAX_FILE_BYTES": "number",
    "MAX_KEY_BYTES": "number",
    "MAX_TRIGGER_BYTES": "number",
    "_listed(header)": "names",
    "_some(found)": "files",
    "_why(name, found)": "how the names differ",
    "address.updates_queue_url": "address",
    "address[:200]": "address",
    "batches": "number",
    "below": "number",
    "block": "name",
    "cause": "cause",
    "cause(str(error))": "cause",
    "cause(str(error.__cause__))": "cause",
    "cause(what)": "cause",
    "character": "semicolons, tabs or another character",
    "complaint": None,
    "compression": "gz",
    "count": "number",
    "document": "an Excel file, a Word file or another document",
    "end.count": "number",
    "error": "cause",
    "error.response.status_code": "number",
    "error.strerror": "cause",
    "error_code(error)": "cause",
    "field": "field",
    "flaw": None,
    "formats.advice": "what to do, such as: unpack it, and make an ordinary ZIP of what it holds",
    "formats.what": "what it is, such as a RAR archive",
    "free": "number",
    "image_column": "column",
    "info.compress_type": "number",
    "info.filename[:80]": "file",
    "instead": "what the archive has instead; ",
    "key": "file",
    "lanes.why": "why it cannot be copied",
    "len(cells)": "number",
    "len(found)": "number",
    "len(infos)": "number",
    "len(self._header)": "number",
    "length": "number",
    "limits.max_in_memory": "number",
    "limits.max_members": "number",
    "limits.max_name_bytes": "number",
    "line": "number",
    "manifest.what": "a workbook or a table of another kind",
    "manifest_text.name": "its encoding",
    "manifest_text.what": "what it is, such as an old Excel workbook (.xls)",
    "max_cells": "number",
    "max_size": "number",
    "members.what": "table of contents or manifest",
    "menu": "Excel's name of the format",
    "message": "what is wrong",
    "method_name(info.compress_type)": "its name",
    "more": "",
    "name": "file",
    "name[:80]": "file",
    "needed": "number",
    "number": "number",
    "other[:80]": "file",
    "problem['ctx']['error']": "what is wrong",
    "problem['msg'][1:]": "",
    "problem['msg'][:1].lower()": "what is wrong",
    "refused[0]": "what is wrong with the file",
    "root": "folder",
    "seen": "text",
    "self._again[0]": "number",
    "self.count": "number",
    "self.name": "bucket",
    "settings.'; '.join(problems)": "each variable with its value, and what is wrong with it",
    "short(deep)": "file",
    "short(found)": "file",
    "short(header[0].strip())": "text",
    "short(inner)": "file",
    "short(line)": "text",
    "short(name)": "name",
    "short(others[0])": "file",
    "size": "number",
    "splicing.what": "what is wrong",
    "state.name": "state",
    "str(error)": None,
    "unusable[file]": "what is wrong with the file",
    "unusable[name]": "what is wrong with the file",
    "url": "address",
    "value": "value",
    "wrong": "what is wrong",
    "workspace.name": "setting",
}
"""What an expression stands for, by its text; with its module's name where that matters."""

INTRODUCTION = """\
# What went wrong

Every sentence with which BIOSPEX can be told that there are no batches. *Slanted words* stand for
what differs from case to case. Search for the words before or after them.

A sentence about a request, an export, an archive or a manifest is for whoever made the export: it
ends with what to do. Trying again without doing that changes nothing. The others are for the
operator, who finds more on the run page; [operations.md](operations.md) begins with what to do.

This page is made from the code by `python -m cli.messages`.
"""

OPENING = "The batch service is not set up correctly, please tell the operator: "

TEXT = (ast.JoinedStr, ast.Constant, ast.BinOp, ast.IfExp)

Scope = Mapping[str, Callable[[], list[str]]]


def page() -> str:
    """The page as the code would have it."""
    sources = Sources()
    found: dict[str, list[str]] = {}
    for kind, sentence in sources.sentences():
        if sentence not in found.setdefault(kind, []):
            found[kind].append(sentence)
    parts = [INTRODUCTION]
    for kind, heading in GROUPS.items():
        parts.append(f"## {heading}\n")
        if kind == "SetupError":
            parts.append(f"Each of these follows the words “{OPENING}”.\n")
        parts.append(_listed(found[kind]))
        for name, (group, functions) in FRAGMENTS.items():
            if group == kind:
                parts.append(f"There *{name}* is one of:\n")
                parts.append(_listed(list(dict.fromkeys(sources.fragments(functions)))))
    return "\n".join(parts)


def _listed(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) + "\n"


class Sources:
    """The modules, and what can be looked up in all of them."""

    def __init__(self) -> None:
        self._modules = [
            (path.stem, ast.parse(path.read_text()))
            for room in ROOMS
            for path in sorted((ROOT / room).rglob("*.py"))
        ]
        self._constants: dict[str, ast.expr] = {}
        self._made_by: dict[str, tuple[str, ast.FunctionDef]] = {}
        for module, tree in self._modules:
            for node in tree.body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    if isinstance(node.value, ast.Constant | ast.JoinedStr):
                        self._constants[node.targets[0].id] = node.value
                elif isinstance(node, ast.FunctionDef) and node.name in MADE_BY:
                    self._made_by.setdefault(node.name, (module, node))

    def sentences(self) -> Iterator[tuple[str, str]]:
        """Whose each sentence is, and the sentence."""
        for module, tree in self._modules:
            for function in _functions(tree):
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and _name(node) in RAISED and node.args:
                        for text in self._texts(node, module, function, {}):
                            yield RAISED[_name(node)], text
                    elif function.name == "explain" and isinstance(node, ast.Return) and node.value:
                        for text in self._texts(node.value, module, function, {}):
                            yield "Any", text

    def fragments(self, functions: str) -> Iterator[str]:
        """What these functions, each with its module, return, note or refuse."""
        for wanted in functions.split():
            for module, tree in self._modules:
                for function in _functions(tree):
                    if wanted == f"{module}.{function.name}":
                        for said in filter(None, map(_said, ast.walk(function))):
                            if isinstance(said, TEXT) or ast.unparse(said) in self._constants:
                                yield from self._texts(said, module, function, {})

    def _texts(
        self, node: ast.expr, module: str, function: ast.FunctionDef, scope: Scope
    ) -> Iterator[str]:
        for text in self._ways(node, module, function, scope):
            if " " in text.strip() and text != "*what is wrong*":  # whose sentences are above
                yield " ".join(text.split()).rstrip(";")

    def _ways(
        self, node: ast.expr, module: str, function: ast.FunctionDef, scope: Scope
    ) -> list[str]:
        """The texts that an expression can be."""

        def ways(inner: ast.expr) -> list[str]:
            return self._ways(inner, module, function, scope)

        if isinstance(node, ast.FormattedValue):
            node = node.value
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.Constant():
                return []
            case ast.JoinedStr(values=values):
                return ["".join(each) for each in product(*map(ways, values))]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return ["".join(each) for each in product(ways(left), ways(right))]
            case ast.IfExp(body=one, orelse=other):
                return ways(one) + ways(other)
            case ast.BoolOp(values=values):
                return [text for value in values for text in ways(value)]
            case ast.Name(id=name) if name in scope:
                return scope[name]()
        text = ast.unparse(node)
        for key in (f"{module}.{text}", text):
            if key in WORDS:
                return _slanted(WORDS[key])
        match node:
            case ast.Name(id=name):
                for assigned in _assigned(function, name):
                    return ways(assigned)
                if name in self._constants:
                    return ways(self._constants[name])
            case ast.Attribute(attr=name) if name in self._constants:  # of another module
                return ways(self._constants[name])
            case ast.Call(args=args) if _name(node) in self._made_by:
                its_module, called = self._made_by[_name(node)]
                names = [argument.arg for argument in called.args.args]
                defaults = called.args.defaults
                missing = defaults[len(defaults) - (len(names) - len(args)) :]
                given = dict(zip(names, [*args, *missing], strict=False))
                inner = {name: partial(ways, value) for name, value in given.items()}
                return [
                    text
                    for node in ast.walk(called)
                    if isinstance(node, ast.Return) and node.value
                    for text in self._ways(node.value, its_module, called, inner)
                ]
            case ast.Call(args=[first, *_]) if _name(node) in (*RAISED, "Fail"):
                return ways(first)
        raise LookupError(f"{module}.py: what does {text!r} stand for? Say so in WORDS.")


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _name(call: ast.Call) -> str:
    """The name of what is called, without what stands before a dot."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _said(node: ast.AST) -> ast.expr | None:
    """What a statement returns, puts into a collection or refuses."""
    match node:
        case ast.Return(value=value) | ast.Assign(targets=[ast.Subscript()], value=value):
            return value
        case ast.Call(args=[first, *_]) if _name(node) in ("append", "ValueError", "_flaw"):
            return first
    return None


def _assigned(function: ast.FunctionDef, name: str) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                yield value
            case ast.NamedExpr(target=ast.Name(id=found), value=value) if found == name:
                yield value


def _slanted(words: str | None) -> list[str]:
    """Words as the page has them; nothing where the sentence is found elsewhere."""
    if not words:
        return [] if words is None else [""]
    core = words.rstrip("; ")
    return [f"*{core}*{words[len(core) :]}"]


if __name__ == "__main__":
    PAGE.write_text(page())
