"""Write docs/messages.md: every sentence with which an export can fail, as the code has them.

``python -m cli.messages`` writes the page anew; a test compares the two.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "messages.md"
ROOMS = ("splitter", "blocks", "flows")

GROUPS = {
    "RequestError": "The request",
    "ObjectError": "The export in S3",
    "ArchiveError": "The archive",
    "ManifestError": "The manifest",
    "ExportError": "Other faults of an export",
    "SetupError": "The batch service itself",
}
"""Whose sentences stand under which heading, in the page's order."""

WRITERS = {"_refusal": "RequestError", "_problem": "ManifestError", "explain": "Any"}
"""Functions that put sentences together, and whose these are."""

INTRODUCTION = """\
# What went wrong

Every sentence with which BIOSPEX can be told that there are no batches. `…` stands for a name, a
number or a cause. Search for the words that do not change.

A sentence about a request, an export, an archive or a manifest is for whoever made the export: it
ends with what to do. Trying again without doing that changes nothing. The others are for the
operator, who finds more on the run page; [operations.md](operations.md) begins with what to do.

This page is made from the code by `python -m cli.messages`.
"""


def page() -> str:
    """The page as the code would have it."""
    found: dict[str, list[str]] = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            text = path.read_text().replace("{MANIFEST}", "manifest.csv")
            for kind, sentence in sentences(ast.parse(text)):
                if sentence not in found.setdefault(kind, []):
                    found[kind].append(sentence)
    parts = [INTRODUCTION]
    for kind, heading in {**GROUPS, "Any": "What may pass, and what nobody foresaw"}.items():
        if kind in found:
            parts += [f"## {heading}\n", "\n".join(f"- {line}" for line in found[kind]) + "\n"]
        if kind == "SetupError":
            opening = "The batch service is not set up correctly, please tell the operator: "
            parts.insert(-1, f"Each of these follows the words “{opening}”.\n")
    return "\n".join(parts)


def sentences(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Whose each sentence is, and the sentence, of a module."""
    named = {
        target.id: node.value
        for node in ast.iter_child_nodes(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            if node.func.id in GROUPS:
                [said, *_] = node.args
                if isinstance(said, ast.Name):
                    said = named.get(said.id, said)
                for sentence in texts(said):
                    yield node.func.id, sentence
        elif isinstance(node, ast.FunctionDef) and node.name in WRITERS:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value:
                    for sentence in texts(inner.value):
                        yield WRITERS[node.name], sentence


def texts(node: ast.expr) -> Iterator[str]:
    """The texts that an expression can be, with … for what is only known when it happens."""
    if isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)
        return
    text = _text(node)
    if text.count(" ") > 2:  # a name alone tells nothing
        yield " ".join(text.split())


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


if __name__ == "__main__":
    PAGE.write_text(page())
