"""Checks that sentences escape foreign text, and that long foreign text is read in linear time."""

import io
import json
import random
import tarfile
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Final

from bench.fuzz.mutations import BrokenPromiseError, cut, unless_refused
from bench.fuzz.streams import zip_by
from flows.run_page.markdown import code, link, plain
from splitter import zooniverse
from splitter.archives import extract as archive
from splitter.archives.extract import Contents
from splitter.manifest import MANIFEST, partition
from splitter.messages import (
    MAX_BODY_BYTES,
    ReplyAddress,
    Request,
    RequestError,
    find_flaw,
    parse_body,
    title,
)
from splitter.sentences import Sentence, escaped

PIECES: Final = [
    *("\0", "\x1b[31m", "\x07", "\x9b", "\x7f", "\u202e", "\u2066", "\u2028", "\ufeff", "\ufffe"),
    *("'", "\\", "`", "|", "\n# All is well", "](http://x.example)", "![](//x)", "<img src=x>"),
    *("javascript:x", "&lt;", "**", "$x$", "www.x.example", "\u0301\u0323", "é", "日本", "🌿"),
    *("{value}", "{0}", "{x.__class__}", "a.jpg", " ", "\ud800"),
]
PROBE: Final = Sentence("fuzz.probe", "The value {value} of {value:bare} is in {values}.")

TRIGGER: Final = {
    "downloadId": 512,
    "file": "41.zip",
    "exportPath": "export/41.zip",
    "totalSize": 5,
    "s3Bucket": "biospex-app",
    "updatesQueueUrl": "https://sqs.us-east-2.amazonaws.com/000000000000/prod-batch-update",
}
LONG: Final = [".s3.", "\u0301\u0323", " ", "9", "../", "[", '"', "<!---->", "a.", "https://", "é"]

SECONDS_AN_INPUT = 2.0
SECONDS_A_MEBIBYTE = 2.0


def make_text(draws: random.Random) -> bytes:
    """Foreign text: control and invisible characters, Markdown, templates."""
    pieces = draws.choices(PIECES, k=draws.randint(0, 12))
    letters = "".join(chr(draws.randrange(0x110000)) for _ in range(draws.randint(0, 6)))
    return "".join([*pieces, letters]).encode("utf-8", "surrogatepass")


def check_text(data: bytes, directory: Path) -> bool:
    """Sentences and artifacts show it on one line, without control characters."""
    text = data.decode("utf-8", "surrogatepass")
    filled = PROBE(value=text, values=[text, text])
    shown = [filled.text, str(filled), plain(text), code(text), link(text, "https://x.example")]
    for line in shown:
        if escaped(line, len(line)) != line or "\n" in line:
            raise BrokenPromiseError("a control character is shown")
        line.encode()
    _check_ends(filled.text)
    return True


def _check_ends(text: str) -> None:
    """The value has no quotation mark except escaped ones and those between two letters."""
    inside = text.removeprefix("The value '")
    inside = inside[: inside.index("' of ")]
    for place, letter in enumerate(inside):
        before, after = inside[place - 1 : place], inside[place + 1 : place + 2]
        is_escaped = before == "\\"
        if letter == "'" and not is_escaped and not (before.isalpha() and after.isalpha()):
            raise BrokenPromiseError("a value ends its quotation marks")


def make_cost(draws: random.Random) -> bytes:
    """A trigger, a manifest, a ZIP or a tar with a long text. The first byte is its kind."""
    unit = draws.choice(LONG)
    number = draws.choice([1, 100, 16_000, 65_000, MAX_BODY_BYTES // 2]) // len(unit.encode())
    long = draws.choice(["", "https://", "s3://", "export/", '"']) + unit * number
    long += draws.choice(["", "x", "/41.zip", ".jpg"])
    match draws.choice("mczt"):
        case "m":
            message = {**TRIGGER, draws.choice([*TRIGGER, "more"]): long}
            body = json.dumps(message, ensure_ascii=draws.random() < 0.5).encode("utf-8", "replace")
            return b"m" + (cut(body, draws) if draws.random() < 0.3 else body)
        case "c":
            return b"c" + _manifest(long, draws)
        case "z":
            return b"z" + _zip(long, draws)
        case _:
            return b"t" + _tar(long, draws)


def _manifest(long: str, draws: random.Random) -> bytes:
    cells = draws.choice([["imageName", "a.jpg"], ["imageName", long], [long, "a.jpg"]])
    return "\n".join([*cells, ""]).encode("utf-8", "replace")


def _zip(long: str, draws: random.Random) -> bytes:
    start = b"\xff\xd8\xff"
    name, image = draws.choice([(long[:16_000], start), ("a.jpg", b"<?xml" + long.encode())])
    return zip_by(
        zipfile.ZIP_DEFLATED,
        {name or "x": image, "manifest.csv": _manifest(name, draws)},
        draws=draws,
    )


def _tar(long: str, draws: random.Random) -> bytes:
    written = io.BytesIO()
    kind = draws.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    with tarfile.open(fileobj=written, mode="w:gz", format=kind) as tar:
        for name, data in ((long or "x", b"\xff\xd8\xff"), ("x.csv", _manifest(long, draws))):
            info = tarfile.TarInfo(name.replace("\0", ""))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return written.getvalue()


def check_cost(data: bytes, directory: Path) -> bool:
    """Reading it takes linear processor time. The worker limits the memory."""
    kind, data = data[:1], data[1:]
    read = {b"m": _read_message, b"c": _read_manifest}.get(kind, _read_archive)
    began = time.process_time()
    accepted = read(data, directory)
    spent = time.process_time() - began
    if spent > SECONDS_AN_INPUT + SECONDS_A_MEBIBYTE * len(data) / 1024**2:
        raise BrokenPromiseError(f"it takes {spent:.0f} s")
    return accepted


def _read_message(data: bytes, directory: Path) -> bool:
    message = parse_body(data.decode("utf-8", "replace"))
    ReplyAddress.of(message)
    title(message)
    find_flaw(message)
    try:
        Request.parse(message)
    except RequestError as refusal:
        if not str(refusal).isprintable():
            raise BrokenPromiseError("a refusal shows a control character") from None
        return False
    return True


def _read_manifest(data: bytes, directory: Path) -> bool:
    names = {MANIFEST, "a.jpg"}
    read = partial(partition.partition_export, names, lambda _: data, "imageName", 2)
    return unless_refused(read) is not None


def _read_archive(data: bytes, directory: Path) -> bool:
    path, store = directory / "archive", directory / "store"
    path.write_bytes(data)
    store.unlink(missing_ok=True)
    contents: Contents | None = unless_refused(lambda: archive.extract(path, store))
    if contents is None:
        return False
    parts = unless_refused(
        lambda: partition.partition_export(contents.members, contents.read, "imageName", 2)
    )
    if parts is None:
        return False
    zooniverse.inspect(parts, contents)
    return True
