"""The directory that one run works in: where it lies, that it is enough, that nothing stays."""

import errno
import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from splitter.errors import SetupError
from splitter.sentences import Actor, Sentence, Words

PREFIX = "biospex-batch-"
LOCK_SUFFIX = ".lock"
PENDING_SUFFIX = ".new"
PENDING_SECONDS = 60

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The file system is full, the user's share of it is, or the file is as large as may be."""

SPACE_PER_ARCHIVE_BYTE = 2.1
"""The archive and its images side by side; JPEGs fill as much unpacked, the rest is margin."""

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


@dataclass(frozen=True)
class Workspace:
    """The directories in which runs may work.

    Attributes:
        tmp_path: for archives of up to ``max_tmp_size`` bytes.
        efs_path: for larger ones; the mount point of a shared file system.
        tmp_name, efs_name: what an operator knows them by.
    """

    tmp_path: Path
    efs_path: Path
    max_tmp_size: int
    tmp_name: str = "the temporary directory"
    efs_name: str = "EFS_PATH"

    def root_for(self, archive_size: int, unpacked: int | None = None) -> Path:
        """The directory that takes an archive of ``archive_size`` bytes, and has the room for it.

        Args:
            unpacked: bytes of its members, where its index tells.

        Raises:
            SetupError: it does not exist (it is never created: on a container without the mount
                that would fill the container's own disk), is not writable, or is too small.
        """
        large = archive_size > self.max_tmp_size
        root = self.efs_path if large else self.tmp_path
        name = Words(self.efs_name if large else self.tmp_name)
        if not root.is_dir():
            raise SetupError(NO_DIRECTORY, setting=name, path=Words(root))
        try:
            tempfile.TemporaryFile(dir=root).close()
        except OSError as error:
            raise SetupError(
                NOT_WRITABLE, setting=name, path=Words(root), cause=error.strerror or ""
            ) from error
        needed = max(int(archive_size * SPACE_PER_ARCHIVE_BYTE), archive_size + (unpacked or 0))
        free = shutil.disk_usage(root).free
        if free < needed:
            raise SetupError(TOO_SMALL, setting=name, path=Words(root), free=free, needed=needed)
        return root


@contextmanager
def run_directory(root: Path) -> Iterator[Path]:
    """A fresh directory for one run, gone at the end however the run ends.

    A lock on the file beside it says that the run lives. The kernel, or the NFS server of EFS,
    releases it when the process dies, and ``sweep`` goes by that.
    """
    directory = root / f"{PREFIX}{uuid4().hex}"
    lock = directory.with_suffix(LOCK_SUFFIX)
    pending = directory.with_suffix(PENDING_SUFFIX)
    with pending.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pending.rename(lock)  # so a lock that nobody holds is that of a dead run, however young
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
    """Remove what runs that died left under ``root``; returns the directories removed."""
    removed = []
    for pending in root.glob(f"{PREFIX}*{PENDING_SUFFIX}"):
        with suppress(OSError):
            if time.time() - pending.stat().st_mtime > PENDING_SECONDS:
                pending.unlink()
    for lock in root.glob(f"{PREFIX}*{LOCK_SUFFIX}"):
        try:
            with lock.open("r+b") as held:  # on NFS an exclusive lock needs a file open for writing
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                directory = lock.with_suffix("")
                if _remove(directory, lock):
                    removed.append(directory)
        except OSError:  # a live run holds it, another user owns it, or another sweep took it
            continue
    return removed


def _remove(directory: Path, lock: Path) -> bool:
    """Remove a directory and then its lock; what cannot be removed now is left to a later sweep."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        return False
    lock.unlink(missing_ok=True)
    return True
