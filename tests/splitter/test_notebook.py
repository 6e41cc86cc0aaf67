"""The example for notebooks in docs/architecture.md splits an archive."""

import csv
import io
import re
import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", ["41-*.zip", "43-*.tar.gz"])
def test_the_example_of_the_page_makes_batches(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [archive] = (ROOT / "tests" / "fixtures").glob(name)
    shutil.copy(archive, tmp_path / "export.zip")
    monkeypatch.chdir(tmp_path)
    exec(example.replace("batch_size=2000", "batch_size=10"), {})
    batches = [ZipFile(path) for path in sorted(tmp_path.glob("part*.zip"))]
    assert len(batches) == 3
    for batch in batches:
        assert batch.testzip() is None
        rows = csv.DictReader(io.StringIO(batch.read("manifest.csv").decode(), newline=""))
        assert {row["imageName"] for row in rows} == {*batch.namelist()} - {"manifest.csv"}
