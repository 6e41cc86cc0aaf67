"""The threshold that follows the disk: ``python -m deploy.disk OLD NEW``, in GiB of a task's disk.

Of the disk an archive may take a third, its images the other two. A threshold that somebody has
changed in the Prefect UI is left as it is: only the one that the old disk gave becomes that of the
new.
"""

import sys

from blocks.saved import BLOCK_NAME
from blocks.workspace import Workspace

GIB = 1024**3


def threshold(disk: int) -> int:
    """Bytes of archive that a disk of so many GiB has room for, unpacked."""
    return disk * GIB // 3


def follow(old: int, new: int) -> bool:
    """Move the saved threshold; False if it is not the one that the old disk gave."""
    workspace = Workspace.load(BLOCK_NAME)
    if not isinstance(workspace, Workspace) or workspace.max_tmp_size != threshold(old):
        return False
    workspace.max_tmp_size = threshold(new)
    workspace.save(BLOCK_NAME, overwrite=True)
    return True


if __name__ == "__main__":
    moved = follow(int(sys.argv[1]), int(sys.argv[2]))
    print("The threshold follows the disk." if moved else "The threshold stays as it was changed.")
