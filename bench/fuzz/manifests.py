"""Manifests, their mutations and their checks."""

import csv
import io
import random
import zipfile
from functools import cache
from pathlib import Path
from typing import Final

from bench.fuzz.mutations import BrokenPromiseError, cut, mutated, unless_refused
from splitter import zooniverse
from splitter.manifest import MANIFEST
from splitter.manifest import partition as manifest
from splitter.manifest import text as manifest_text
from splitter.manifest.diagnosis import explain
from splitter.sentences import Problem

FIXTURES = Path(__file__).parent.parent.parent / "tests" / "fixtures"

TOKENS: Final = [
    *('"', '""', "\\", '\\"', '\\""', ",", ",,", "\n", "\r", "\r\n", "\n\n", "\0", "\ufeff", "\t"),
    *("imageName", "a.jpg", "é", "\u2028", "\x85", "\x1c", "\ud7ff", "🦋", "'", ";", " ", "NA"),
    "=1",
    *("manifest.csv", '"\n"', '","', '\\",\\"', '\\"\n', "x" * 200, "../a.jpg", '"a\nb"'),
]
BYTES: Final = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf5", b"\0"]


@cache
def manifests() -> list[bytes]:
    texts = [
        "imageName\na.jpg\nb.jpg\n",
        "subjectId,imageName\r\n1,a.jpg\r\n2,b.jpg",
        'imageName,x\na.jpg,"5\\" tall, wide"\nb.jpg,"ends in \\"\n',
        'imageName,x\na.jpg,"say ""so"", twice"\n\nb.jpg,"two\nlines"\n',
        "\ufeffimageName,x,x\na.jpg,NA,007\nb.jpg,1e5,\n",
        'x,imageName\n"\r",a.jpg\n"\\\\",b.jpg\n',
    ]
    real = (FIXTURES / "php-manifest.csv").read_bytes()
    with zipfile.ZipFile(next(FIXTURES.glob("41-*.zip"))) as source:
        whole = source.read("manifest.csv")
    return 3 * [text.encode() for text in texts] + 2 * [real] + [whole]


def make_manifest(draws: random.Random) -> bytes:
    if draws.random() < 0.2:  # only characters with a meaning in CSV
        some = draws.sample(TOKENS, 6)
        text = "".join(draws.choice(some) for _ in range(draws.randint(0, 20)))
        return f"imageName{draws.choice(['', ',x'])}\n{text}".encode()
    return mutated(draws.choice(manifests()), draws, [change_text, change_text, change_lines, cut])


def change_text(data: bytes, draws: random.Random) -> bytes:
    """Insert a token, or replace some bytes with it."""
    token = draws.choice(BYTES) if draws.random() < 0.1 else draws.choice(TOKENS).encode()
    start = draws.randrange(len(data) + 1)
    return data[:start] + token + data[start + draws.choice([0, 0, 1, len(token)]) :]


def change_lines(data: bytes, draws: random.Random) -> bytes:
    """Shuffle, repeat or drop lines."""
    lines = data.splitlines(keepends=True)
    match draws.randrange(3):
        case 0:
            lines[1:] = draws.sample(lines[1:], len(lines[1:]))
        case 1:
            lines *= draws.randint(2, 4)
        case 2:
            lines = [line for line in lines if draws.random() < 0.8]
    return b"".join(lines)


def check_manifest(data: bytes, directory: Path) -> bool:
    """Whether the manifest is accepted. Every cell must be unchanged in the batches."""
    table = unless_refused(lambda: _table(data))
    if table is None:
        return False
    header, wanted, warnings, column = table
    if b'\\"' not in data and not warnings:
        text = data.decode("utf-8-sig")
        plain = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        if plain != [header, *wanted]:
            raise BrokenPromiseError("csv reads other cells")
    names = {MANIFEST, *(row[column] for row in wanted)}
    parts = unless_refused(lambda: manifest.partition_export(names, lambda _: data, "imageName", 2))
    if parts is None:
        return True
    got: list[list[str]] = []
    for batch in parts.batches:
        batch_header, *rows = csv.reader(io.StringIO(batch.manifest.decode(), newline=""))
        if batch_header != header:
            raise BrokenPromiseError("a batch has another header")
        if {row[column] for row in rows} != set(batch.images):
            raise BrokenPromiseError("a batch has other images than its rows name")
        *read, warnings, _ = _table(batch.manifest)
        # A warning about a batch's manifest can be correct: a column without a name may have its
        # cells in other batches.
        if not warnings and read != [header, rows]:
            raise BrokenPromiseError("a batch's manifest is not read as csv reads it")
        got += rows
    if got != wanted:
        raise BrokenPromiseError("the batches have other cells than the manifest")
    list(zooniverse.of_cells(parts))
    return True


def _table(data: bytes) -> tuple[list[str], list[list[str]], list[Problem], int]:
    """Header, rows and warnings of a manifest, and the position of its image column."""
    try:
        table = manifest_text.read(data, "imageName")
        rows = [cells for _, cells in table.rows]
    except manifest_text.UnreadableError as failure:
        raise explain(failure) from failure
    return table.header, rows, table.warnings, table.column
