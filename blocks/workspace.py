"""The Workspace block: the directories for unpacking, editable in the Prefect UI."""

import tempfile
from pathlib import Path

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl

from splitter import workspace
from splitter.settings import AbsolutePath, Docs, Settings

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

    def paths(self) -> workspace.Workspace:
        return workspace.Workspace(
            tmp_path=self.tmp_path or Path(tempfile.gettempdir()),
            efs_path=self.efs_path,
            max_tmp_size=self.max_tmp_size,
            **self._names(),
        )

    def _names(self) -> dict[str, str]:
        if not self._block_document_name:
            return {}
        block = f"of the block {self.get_block_type_slug()}/{self._block_document_name}"
        return {"tmp_name": f"the temporary path {block}", "efs_name": f"the EFS path {block}"}
