"""The demo: its output, its errors, and that it leaves nothing behind."""

import errno
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from devtools.demo import main
from devtools.services import DemoError, child
from devtools.story import check_room
from tests.conftest import EXPORTS
from tests.helpers.processes import eventually

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
MARK = "BIOSPEX_DEMO_TEST"


def demo(
    *arguments: str, temporary: Path, until: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end, or press Ctrl-C when it has printed ``until``."""
    output, errors = temporary / "output", temporary / "errors"
    with output.open("wb") as stdout, errors.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "devtools.demo", "--out", str(temporary / "out"), *arguments],
            cwd=ROOT,
            env=surroundings(temporary, **environment),
            stdout=stdout,
            stderr=stderr,
        )
        try:
            if until:
                eventually(lambda: until in output.read_text() or process.poll() is not None)
                process.send_signal(signal.SIGINT)
            status = process.wait(timeout=180)
        finally:
            process.terminate()  # it ends its services; nothing happens to one that has ended
            process.wait(timeout=60)
    return subprocess.CompletedProcess(process.args, status, output.read_text(), errors.read_text())


def surroundings(temporary: Path, **environment: str) -> dict[str, str]:
    """The environment of a demo whose processes and files a test can find."""
    (temporary / "tmp").mkdir(exist_ok=True)
    others = ("AWS_", "PREFECT_", "BATCH_SIZE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return {**inherited, MARK: str(temporary), "TMPDIR": str(temporary / "tmp"), **environment}


def processes(temporary: Path) -> list[int]:
    """The living processes that a demo has started."""
    mark = f"{MARK}={temporary}".encode()
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


def left_behind(temporary: Path) -> tuple[list[int], list[Path]]:
    return processes(temporary), list((temporary / "tmp").iterdir())


def test_two_examples_in_thirty_lines_leave_only_batches_and_the_log(
    tmp_path: Path,
) -> None:
    out = tmp_path / "[out] of two"
    done = demo(
        *("--keep", "--out", str(out)),
        temporary=tmp_path,
        until="until you press Ctrl-C",
        AWS_ENDPOINT_URL_S3="http://127.0.0.1:9",  # a store of the shell's
        AWS_PROFILE="missing",
    )
    assert done.returncode == 130, done.stdout + done.stderr
    assert done.stderr.split("\n") == ["", "stopping ...", "stopped", ""]
    lines = done.stdout.splitlines()
    assert len(lines) <= 28  # and two for the set-up
    for text in (
        "  Lane is splice: ",
        "  Lane is extract: ",
        "  partition into batches of 10 rows: 25 rows in 3 batches\n",
        "  splice batch 3 of 3, rows 21-25: Put ",
        "  zip and upload batch 3 of 3, rows 21-25: Put ",
        "  callback  success\n",
        "2 archives in 6 batches",
        "unzip -l ",
        "full log   ",
    ):
        assert text in done.stdout
    [tried] = re.findall(r'unzip -l "(.+)"', done.stdout)
    assert zipfile.is_zipfile(tried)
    assert "Finished in state" in (out / "demo.log").read_text()
    assert left_behind(tmp_path) == ([], [])


@pytest.mark.soak
def test_a_broken_archive_with_a_space_in_its_name_ends_in_one_sentence(tmp_path: Path) -> None:
    archive = tmp_path / "my own export.zip"
    archive.write_bytes(EXPORTS[0].read_bytes()[:100_000])
    done = demo(str(archive), temporary=tmp_path)
    assert done.returncode == 1
    assert "callback  failed" in done.stdout
    assert "The archive is damaged or incomplete" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "1 archive could not be split" in done.stdout
    assert "make demo KEEP=1" in done.stdout
    assert "Traceback" not in (tmp_path / "out" / "demo.log").read_text()
    assert left_behind(tmp_path) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["nowhere.zip"], {}, "There is no archive nowhere.zip."),
        (["~missing/x.zip"], {}, "There is no archive ~missing/x.zip."),
        (["tests/fixtures"], {}, "tests/fixtures is a folder; name the archive itself"),
        (
            [],
            {"BATCH_SIZE": "0"},
            "These settings cannot be used: BATCH_SIZE='0': Input should be greater",
        ),
        (
            ["--batch-size", "many"],
            {},
            "These settings cannot be used: BATCH_SIZE='many': Input should be a valid integer",
        ),
        (["README.md"], {}, "The export is "),
        (["--out", "README.md"], {}, "README.md cannot be written to"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    arguments: list[str],
    environment: dict[str, str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setitem(os.environ, "BATCH_SIZE", "")  # the demo sets it
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["--out", str(tmp_path / "out"), *arguments]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith(sentence)
    assert len(complaint.splitlines()) == 1


def test_an_archive_that_may_not_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("devtools.demo.identify", refuse)
    assert main([str(EXPORTS[0])]) == 1
    assert capsys.readouterr().err == f"{EXPORTS[0]} cannot be read (Permission denied).\n"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"free, .* are needed; set TMPDIR"):
        check_room(tmp_path, 2**62)


def test_a_full_folder_of_the_batches_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("devtools.demo.tell", write)
    assert main(["--out", "small"]) == 1
    assert capsys.readouterr().err.endswith(" or small is full.\n")


@pytest.mark.soak
def test_a_disk_that_becomes_full_is_named(tmp_path: Path) -> None:
    code = (
        "import sys, devtools.story; devtools.story.check_room.__defaults__ = (2**62,);"
        "from devtools.demo import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env=surroundings(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "are needed; set TMPDIR" in done.stderr
    assert left_behind(tmp_path) == ([], [])


def test_a_second_demo_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "demo.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        done = demo(temporary=tmp_path)
    assert done.returncode == 1
    assert "Another demo writes to" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@contextmanager
def on_a_terminal(temporary: Path) -> Iterator[tuple[int, list[bytes], int]]:
    """The demo on a terminal: its process, its output and the terminal."""
    process, terminal = pty.fork()
    if not process:
        os.chdir(ROOT)
        command = [sys.executable, "-m", "devtools.demo", "--out", str(temporary / "out")]
        os.execve(sys.executable, command, surroundings(temporary, TERM="xterm"))
    printed: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the other end is closed
            while data := os.read(terminal, 4096):
                printed.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield process, printed, terminal
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        reader.join()
        os.close(terminal)


@pytest.mark.soak
@pytest.mark.parametrize("moment", ["Starting S3", "S3, SQS and Prefect run"])
def test_ctrl_c_prints_stopped_and_leaves_no_process_and_no_file(
    moment: str, tmp_path: Path
) -> None:
    with on_a_terminal(tmp_path) as (process, printed, terminal):
        eventually(lambda: moment in b"".join(printed).decode(errors="replace"))
        time.sleep(0.5)
        os.write(terminal, b"\x03")
        _, status = os.waitpid(process, 0)
    output = b"".join(printed).decode()
    assert os.waitstatus_to_exitcode(status) == 130
    assert output.endswith("stopped\r\n")
    assert "Traceback" not in output
    assert left_behind(tmp_path) == ([], [])


def test_child_processes_end_with_their_service(tmp_path: Path) -> None:
    command = ["sh", "-c", f"{MARK}={tmp_path} sleep 300 & wait"]
    with child(command, {}, None):
        eventually(lambda: processes(tmp_path))
    eventually(lambda: not processes(tmp_path))
