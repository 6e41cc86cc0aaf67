"""Hostile exports and messages get one callback, in time, in little memory, in harmless text.

The inputs are in tests/fixtures/cases/abuse; index.json describes each one.
"""

import csv
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer
from typing import Any
from uuid import uuid4

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterName,
    LogFilter,
    LogFilterFlowRunId,
)

from splitter.messages import find_flaw, parse_body, title
from splitter.sentences import escaped
from tests.conftest import FIXTURES
from tests.helpers.biospex import Biospex

pytestmark = pytest.mark.usefixtures("prefect_api", "aws", "workspace")

ABUSE = FIXTURES / "cases" / "abuse"
ARCHIVES = sorted([*ABUSE.glob("*.zip"), *ABUSE.glob("*.tar.gz")])
MESSAGES = sorted(ABUSE.glob("*-message-*.json"))

SECONDS = 10
"""Of processor time, as a busy machine is slow."""
PATIENCE = 300
MEMORY = 700 * 1024**2

CHILD = """
import json, os, sys, tempfile, time
from pathlib import Path
from prefect.logging.handlers import APILogHandler
from flows.create_batches import create_batches
for line in sys.stdin:
    request, environment = json.loads(line)
    os.environ.update(environment)
    tempfile.tempdir = None
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: proc(5)
    began = time.process_time()
    create_batches(request, return_state=True)
    took = time.process_time() - began
    APILogHandler().flush()
    status = Path("/proc/self/status").read_text()
    print("end:", status.partition("VmHWM:")[2].split()[0], took, flush=True)
"""

Run = Callable[..., None]


@pytest.fixture(scope="module")
def child(prefect_api: dict[str, str], aws: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs the flow for each request; its time and memory can be limited."""
    command = [sys.executable, "-c", CHILD]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def run(child: "subprocess.Popen[str]") -> Run:
    """Runs the flow, which may take so much time and memory."""

    def run(request: Any, **environment: str) -> None:
        assert child.stdin and child.stdout
        environment |= {name: os.environ[name] for name in ("TMPDIR", "EFS_PATH")}
        print(json.dumps([request, environment]), file=child.stdin, flush=True)
        watchdog = Timer(PATIENCE, child.kill)
        watchdog.start()
        ends = (line.split()[1:] for line in child.stdout if line.startswith("end: "))
        end = next(ends, None)
        watchdog.cancel()
        assert end, f"no end within {PATIENCE} s"
        peak, seconds = map(float, end)
        assert peak * 1024 < MEMORY
        assert seconds < SECONDS

    return run


def printed(prefect: SyncPrefectClient, name: str) -> tuple[list[str], list[str]]:
    """The states and log lines that Prefect has of the run of that name, and its artifacts."""
    of_that_name = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
    [flow_run] = prefect.read_flow_runs(flow_run_filter=of_that_name)
    states = prefect.read_flow_run_states(flow_run.id)
    log = prefect.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run.id])))
    artifacts = prefect.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
    )
    lines = [f"{state.name}: {state.message}" for state in states]
    lines += [line for entry in log for line in entry.message.split("\n")]
    texts = [f"{artifact.description}\n\n{artifact.data}" for artifact in artifacts]
    return lines, texts


def markup(text: str) -> Iterator[Token]:
    """The HTML, images and links of a text in Markdown, and forged headings."""
    open_tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    for token in open_tokens:
        open_tokens += token.children or []
        is_forged = token.type == "inline" and token.content.startswith("All is well")
        if is_forged or token.type in ("html_block", "html_inline", "image", "link_open"):
            yield token


def is_ours(token: Token) -> bool:
    target = str(token.attrs.get("src") or token.attrs.get("href") or "")
    own = ("data:image/jpeg;base64,", "https://us-east-2.console.aws.amazon.com/")
    aws = os.environ["AWS_ENDPOINT_URL"]
    return token.type in ("image", "link_open") and target.startswith((*own, aws))


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_a_hostile_export_gets_one_harmless_callback(
    archive: Path, run: Run, biospex: Biospex, prefect: SyncPrefectClient
) -> None:
    check_harmless(archive, run, biospex, prefect)


HOSTILE = [
    "\x1b]0;title\x07\x1b[31m",
    "\x9b31m\x85",
    "\u202egpj.x\u2066",
    "\r\nERROR forged",
    "<img src=x onerror=alert(1)>",
    "[Retry](javascript:alert(1))",
    "![](http://x.example/t.jpg) http://x.example/y www.x.example",
    "\n\n# All is well\n\n| a |\n|---|\n",
    "`'\\",
]


@pytest.mark.parametrize(
    "place",
    ["a missing image", "names of files", "names of columns", "a name that keeps it from S3"],
)
def test_hostile_text_is_harmless_in_every_place(
    place: str, run: Run, biospex: Biospex, prefect: SyncPrefectClient, tmp_path: Path
) -> None:
    archive = tmp_path / f"{uuid4()}.zip"
    with zipfile.ZipFile(archive, "w") as export:
        export.writestr("a.jpg", b"\xff\xd8\xff")
        header, cell = "imageName", "a.jpg"
        match place:
            case "a missing image":
                cell = "".join(HOSTILE) + ".jpg"
            case "names of files":
                for text in HOSTILE:
                    export.writestr(f"{text.replace('/', '')}.jpg", b"GIF")
            case "a name that keeps it from S3":
                export.writestr(f"./x//{''.join(HOSTILE).replace('/', '')}.jpg", b"GIF")
            case _:
                header = "".join(HOSTILE)
        written = io.StringIO()
        csv.writer(written).writerows([[header], [cell]])
        export.writestr("manifest.csv", written.getvalue())
    check_harmless(archive, run, biospex, prefect)


def check_harmless(archive: Path, run: Run, biospex: Biospex, prefect: SyncPrefectClient) -> None:
    """Run an export and look at everything that people are shown of it."""
    download = str(uuid4())
    request = biospex.request(archive, downloadId=download)
    run(request, SPLICE_MIN_SIZE="0")
    [callback] = biospex.callbacks()
    assert callback["downloadId"] == download
    lines, artifacts = printed(prefect, title(request))
    assert artifacts
    for text in [*lines, callback.get("error", "")]:
        assert escaped(text, len(text)) == text
    for text in artifacts:
        assert [line for line in text.split("\n") if escaped(line, len(line)) != line] == []
        assert [token for token in markup(text) if not is_ours(token)] == []


@pytest.mark.parametrize("file", MESSAGES, ids=lambda path: path.name)
def test_a_hostile_message_is_refused_and_answered(
    file: Path, run: Run, biospex: Biospex, prefect: SyncPrefectClient
) -> None:
    began = time.process_time()
    message = parse_body(file.read_text())
    assert find_flaw(message)
    title(message)
    assert time.process_time() - began < 0.5
    download = str(uuid4())
    hostile = {**message, "downloadId": download, "updatesQueueUrl": biospex.queue_url}
    run(hostile)
    [callback] = biospex.callbacks()
    assert (callback["downloadId"], callback["status"]) == (download, "failed")
    lines, _ = printed(prefect, title(hostile))
    assert max(map(len, lines)) < 2000
