import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blocks.workspace import Workspace
from splitter import workspace
from splitter.errors import SetupError
from splitter.workspace import check_root, run_directory, sweep

ROOT = Path(__file__).parent.parent.parent
RUN = """
import sys
from pathlib import Path
from splitter.workspace import run_directory

with run_directory(Path(sys.argv[1])) as directory:
    (directory / "image.jpg").write_bytes(b"image")
    print(directory, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_run(root: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run in another process, and its directory; it ends when its input does."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(root)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        yield process, Path(process.stdout.readline().strip())


def age(root: Path) -> None:
    """Make everything look as if it had been there for a day."""
    for path in root.iterdir():
        os.utime(path, (0, path.stat().st_mtime - 86_400))


@pytest.mark.parametrize(("size", "place"), [(0, "tmp"), (100, "tmp"), (101, "efs")])
def test_the_archives_size_decides_where_a_run_works(size: int, place: str, tmp_path: Path) -> None:
    for name in ("tmp", "efs"):
        (tmp_path / name).mkdir()
    choice = Workspace(tmp_path=tmp_path / "tmp", efs_path=tmp_path / "efs", max_tmp_size=100)
    assert choice.root_for(size) == tmp_path / place


def test_an_efs_that_is_not_mounted_is_reported_and_never_created(tmp_path: Path) -> None:
    efs = tmp_path / "efs" / "batch"
    with pytest.raises(SetupError, match=f"EFS_PATH {efs} does not exist"):
        check_root(efs, "EFS_PATH", 1)
    assert not efs.parent.exists()


def test_a_file_is_no_efs(tmp_path: Path) -> None:
    (tmp_path / "efs").touch()
    with pytest.raises(SetupError, match=r"EFS_PATH .* does not exist"):
        check_root(tmp_path / "efs", "EFS_PATH", 1)


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(),
    reason="only Linux's /proc is a directory that no user can write to, root included",
)
@pytest.mark.parametrize(
    ("choice", "name"),
    [
        (Workspace(tmp_path=Path("/tmp"), efs_path=Path("/proc"), max_tmp_size=0), "EFS_PATH"),
        (
            Workspace(tmp_path=Path("/proc"), efs_path=Path("/tmp"), max_tmp_size=9),
            "the temporary directory",
        ),
    ],
    ids=["EFS", "temporary directory"],
)
def test_a_directory_that_cannot_be_written_is_reported(choice: Workspace, name: str) -> None:
    with pytest.raises(SetupError, match=f"{name} /proc is not writable"):
        choice.root_for(1)


def test_too_little_space_is_reported_with_both_figures(tmp_path: Path) -> None:
    petabyte = 10**15
    with pytest.raises(SetupError) as refusal:
        check_root(tmp_path, "EFS_PATH", petabyte)
    figures = r"has [\d,]{6,} bytes free, the export needs 2,100,000,000,000,000;"
    assert refusal.match(figures)


def test_choosing_a_place_leaves_nothing_there(tmp_path: Path) -> None:
    check_root(tmp_path, "EFS_PATH", 1)
    assert not list(tmp_path.iterdir())


def test_a_runs_directory_is_fresh_private_and_gone_after_success(tmp_path: Path) -> None:
    with run_directory(tmp_path) as one, run_directory(tmp_path) as other:
        assert one != other
        assert one.stat().st_mode & 0o777 == 0o700
        (one / "store").write_bytes(b"image")
    assert not list(tmp_path.iterdir())


def test_a_runs_directory_is_gone_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the run fails"), run_directory(tmp_path) as directory:
        (directory / "store").write_bytes(b"image")
        raise RuntimeError("the run fails")
    assert not list(tmp_path.iterdir())


def test_a_live_runs_directory_is_not_swept_however_old_it_is(tmp_path: Path) -> None:
    with another_run(tmp_path) as (process, directory):
        age(tmp_path)
        assert sweep(tmp_path) == []
        assert (directory / "image.jpg").exists()
        process.communicate("")
        assert process.returncode == 0
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_just_beginning_is_not_swept(tmp_path: Path) -> None:
    pending = tmp_path / f"{workspace.PREFIX}1{workspace.PENDING_SUFFIX}"
    pending.touch()
    assert sweep(tmp_path) == []
    assert pending.exists()
    age(tmp_path)
    sweep(tmp_path)
    assert not pending.exists()


def test_a_run_that_was_killed_a_moment_ago_is_swept(tmp_path: Path) -> None:
    with another_run(tmp_path) as (process, directory):
        process.kill()
    assert (directory / "image.jpg").exists()
    assert sweep(tmp_path) == [directory]
    assert list(tmp_path.iterdir()) == []


def test_files_of_other_programs_are_not_swept(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other.lock").touch()
    age(tmp_path)
    assert sweep(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 2


def test_a_lock_that_cannot_be_opened_does_not_stop_the_sweep(tmp_path: Path) -> None:
    (tmp_path / f"{workspace.PREFIX}odd{workspace.LOCK_SUFFIX}").symlink_to("nowhere")
    with another_run(tmp_path) as (process, directory):
        process.kill()
    os.utime(directory.with_suffix(workspace.LOCK_SUFFIX), (0, 0))
    assert sweep(tmp_path) == [directory]


def test_an_archive_larger_than_the_disk_is_refused_first(tmp_path: Path) -> None:
    check_root(tmp_path, "EFS_PATH", 100, unpacked=1000)
    with pytest.raises(SetupError, match="bytes free, the export needs 1,000,000,000,000,100"):
        check_root(tmp_path, "EFS_PATH", 100, unpacked=10**15)


def test_a_disk_that_becomes_full_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(SetupError, match=rf"{tmp_path} ran out of space"),
        run_directory(tmp_path),
        Path("/dev/full").open("wb") as full,
    ):
        full.write(b"image" * 10_000)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_directory_is_kept_for_a_later_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        with run_directory(tmp_path):
            pass
        age(tmp_path)
        assert sweep(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 2
    assert len(sweep(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []
