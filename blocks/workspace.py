"""The Workspace block: the directories for unpacking, editable in the Prefect UI."""

import tempfile
from pathlib import Path

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl

from splitter.settings import AbsolutePath, Docs, Settings
from splitter.workspace import check_root

PAGE = Docs().address("configuration.md")


class Workspace(Block):
    """Directories in which the batch creator unpacks exports, by the size of the archive.

    Without a saved block named `biospex`, runs use EFS_PATH and MAX_TMP_SIZE of the environment.
    """

    _block_type_name = "BIOSPEX Workspace"
    _block_type_slug = "biospex-workspace"
    _description = (
        "Directories in which the batch creator unpacks exports, by the size of the archive. A "
        f"change applies from the next run on. See {Docs().page('configuration.md')}."
    )
    _documentation_url = HttpUrl(PAGE) if PAGE else None

    tmp_path: AbsolutePath | None = Field(
        default=None,
        title="Temporary path",
        description="Directory for ordinary exports, such as /mnt/fast; empty for the machine's "
        "own (TMPDIR).",
    )
    efs_path: AbsolutePath = Field(
        default=Path("/efs/batch"),
        title="EFS path",
        description="Mounted directory for exports above the threshold. It is never created.",
    )
    max_tmp_size: int = Field(
        default=7 * 1024**3,
        ge=0,
        title="Threshold",
        description="Archives of more bytes than this are unpacked on EFS.",
    )

    @classmethod
    def from_settings(cls, settings: Settings) -> "Workspace":
        return cls(efs_path=settings.efs_path, max_tmp_size=settings.max_tmp_size)

    def root_for(self, archive_size: int, unpacked: int = 0) -> Path:
        """The directory for an archive; see ``check_root`` for arguments and errors."""
        root = self.tmp_path or Path(tempfile.gettempdir())
        name, own_name = "the temporary path", "the temporary directory"
        if archive_size > self.max_tmp_size:
            root, name, own_name = self.efs_path, "the EFS path", "EFS_PATH"
        if block := self._block_document_name:
            own_name = f"{name} of the block {self.get_block_type_slug()}/{block}"
        check_root(root, own_name, archive_size, unpacked)
        return root
