"""Checks the directory for runs, makes one for each run and removes it afterwards."""

import errno
import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from splitter.errors import SetupError
from splitter.sentences import Actor, Sentence, Words

PREFIX = "biospex-batch-"
LOCK_SUFFIX = ".lock"
PENDING_SUFFIX = ".new"
PENDING_SECONDS = 60

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The file system or the user's quota is full, or the file has its largest possible size."""

SPACE_PER_ARCHIVE_BYTE = 2.1
"""The archive and its images. JPEGs need the same space unpacked; the rest is margin."""

NO_DIRECTORY = Sentence(
    "workspace.no-directory",
    "{setting} {path} does not exist; is the file system mounted?",
    Actor.OPERATOR,
    "Mount the file system, or correct the setting, then press Retry.",
)
NOT_WRITABLE = Sentence(
    "workspace.not-writable",
    "{setting} {path} is not writable: {cause:bare}.",
    Actor.OPERATOR,
    "Let the user of the flow write there, then press Retry.",
)
TOO_SMALL = Sentence(
    "workspace.too-small",
    "{setting} {path} has {free} bytes free, the export needs {needed}; make room or let large "
    "exports use EFS.",
    Actor.OPERATOR,
    "Make room, or set MAX_TMP_SIZE and EFS_PATH so that large exports use EFS, then press Retry.",
)
RAN_OUT = Sentence(
    "workspace.ran-out-of-space",
    "{path} ran out of space ({cause:bare}); make room, let fewer exports run at a time "
    "(MAX_IN_FLIGHT), or let large ones use EFS.",
    Actor.OPERATOR,
    "Make room or lower MAX_IN_FLIGHT, then press Retry.",
)


def check_root(root: Path, setting: str, archive_size: int, unpacked: int = 0) -> None:
    """Check that a directory can hold an archive of ``archive_size`` bytes and its images.

    Never creates it: without the mount, that would fill a container's own disk.

    Args:
        setting: the name that sentences use for the directory.
        unpacked: bytes of the unpacked members, if known.

    Raises:
        SetupError: if it does not exist, is not writable or has too little space.
    """
    place = {"setting": Words(setting), "path": Words(root)}
    if not root.is_dir():
        raise SetupError(NO_DIRECTORY, **place)
    try:
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        raise SetupError(NOT_WRITABLE, **place, cause=error.strerror or "") from error
    needed = max(int(archive_size * SPACE_PER_ARCHIVE_BYTE), archive_size + unpacked)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise SetupError(TOO_SMALL, **place, free=free, needed=needed)


@contextmanager
def run_directory(root: Path) -> Iterator[Path]:
    """A new directory for one run, removed at the end.

    A locked file beside it marks a live run. If the process dies, the kernel or the NFS server of
    EFS releases the lock, and ``sweep`` removes the directory.
    """
    directory = root / f"{PREFIX}{uuid4().hex}"
    lock = directory.with_suffix(LOCK_SUFFIX)
    pending = directory.with_suffix(PENDING_SUFFIX)
    with pending.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pending.rename(lock)  # an existing lock file without a lock always means a dead run
        try:
            directory.mkdir(mode=0o700)
            yield directory
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise SetupError(RAN_OUT, path=Words(root), cause=error.strerror or "") from error
        finally:
            _remove(directory, lock)


def sweep(root: Path) -> list[Path]:
    """Remove the directories of dead runs under ``root`` and return their paths."""
    removed = []
    for pending in root.glob(f"{PREFIX}*{PENDING_SUFFIX}"):
        with suppress(OSError):
            if time.time() - pending.stat().st_mtime > PENDING_SECONDS:
                pending.unlink()
    for lock in root.glob(f"{PREFIX}*{LOCK_SUFFIX}"):
        try:
            with lock.open("r+b") as held:  # NFS locks exclusively only if the file is writable
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                directory = lock.with_suffix("")
                if _remove(directory, lock):
                    removed.append(directory)
        except OSError:  # a live run or another sweep holds it, or another user owns it
            continue
    return removed


def _remove(directory: Path, lock: Path) -> bool:
    """Remove a directory and then its lock; False if a later sweep has to finish."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        return False
    lock.unlink(missing_ok=True)
    return True
