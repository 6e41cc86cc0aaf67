"""The run page answers the questions of its readers."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import requests
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact, State
from prefect.deployments.runner import RunnerDeployment
from prefect.flow_engine import run_flow

from flows.create_batches import create_batches
from flows.support.artifacts import callback_markdown, callback_title
from splitter.messages import Failure, Result
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex

pytestmark = pytest.mark.usefixtures("prefect_api", "aws", "workspace")


@pytest.fixture
def shown(prefect: SyncPrefectClient) -> Callable[[Any], dict[str, Artifact]]:
    """Runs an export and gives the artifacts on its page, by key, else by description."""

    def show(request: Any) -> dict[str, Artifact]:
        state: State[Any] = create_batches(request, return_state=True)
        assert state.state_details.flow_run_id
        run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        found = prefect.read_artifacts(flow_run_filter=run)
        return {str(artifact.key or artifact.description): artifact for artifact in found}

    return show


Shown = Callable[[Any], dict[str, Artifact]]


@pytest.mark.parametrize("least", ["0", "99999999"], ids=["splice", "extract"])
def test_which_rows_are_in_a_batch_and_where_it_is_is_on_the_page(
    least: str, shown: Shown, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "20")
    monkeypatch.setenv("SPLICE_MIN_SIZE", least)
    page = shown(biospex.request(EXPORTS[0]))
    summary = str(page["summary"].data)
    assert "25 rows in 2 batches" in summary
    assert "No warnings." in summary
    [_, second] = json.loads(str(page["batches"].data))
    assert second["rows"] == "21-25"
    assert second["size"].endswith(" kB")
    assert second["bytes"] > 1000
    [link] = re.findall(r"part2\.zip\]\(<(http[^>]+)>\): rows 21 to 25, ", summary)
    assert requests.get(link, timeout=60).content.startswith(b"PK\3\4")
    assert "](data:image/jpeg;base64," in str(page["images"].data)
    assert len(str(page["images"].data)) <= 40_000


@pytest.mark.parametrize(
    ("variable", "value"), [("PRESIGNED_LINKS", "false"), ("AWS_SESSION_TOKEN", "of a role")]
)
def test_where_a_link_may_not_be_signed_or_would_not_last_the_console_is_linked(
    variable: str, value: str, shown: Shown, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    summary = str(shown(biospex.request(EXPORTS[0]))["summary"].data)
    assert "https://us-east-2.console.aws.amazon.com/s3/object/bucket-" in summary
    assert "Signature" not in summary


def test_what_biospex_was_told_is_a_sentence_and_then_the_message_line_by_line() -> None:
    failure = Failure(download_id=7, error="The archive is damaged; export it again.")
    assert callback_title(failure) == f"BIOSPEX was told: {failure.error}"
    sentence, _, block = callback_markdown(failure).partition("\n\nThe message:\n\n```json\n")
    assert failure.error in sentence
    assert json.loads(block.removesuffix("\n```")) == failure.model_dump(by_alias=True)
    assert '\n  "error": "The archive' in block
    success = Result(download_id=7, batch_files=["x-part1.zip"])
    assert callback_title(success) == "BIOSPEX was told: 1 batch is ready."


def test_a_failure_says_what_is_wrong_and_where_its_sentence_is_explained(
    shown: Shown, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCS_URL", "https://docs.example/")
    page = shown(biospex.request(EXPORTS[0], exportPath=f"gone/{EXPORTS[0].name}"))
    summary = str(page["summary"].data)
    assert summary.startswith("**No batches:** There is no export 'gone/")
    assert "**Who must act:** whoever made the export" in summary
    assert "[messages.md](https://docs.example/messages.md)" in summary
    assert "batches" not in page


def test_a_request_need_not_say_how_large_the_archive_is(shown: Shown, biospex: Biospex) -> None:
    request = biospex.request(EXPORTS[0])
    del request["totalSize"]
    assert "No warnings." in str(shown(request)["summary"].data)
    assert "The request says that the archive has 1 bytes" in str(
        shown(biospex.request(EXPORTS[0], totalSize=1))["summary"].data
    )


def test_pictures_that_cannot_be_made_make_no_export_fail(
    shown: Shown, biospex: Biospex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / f"{uuid4()}.zip"
    with zipfile.ZipFile(archive, "w") as export:
        export.writestr("a.jpg", b"<html>503</html>")
        export.writestr("manifest.csv", "imageName\na.jpg\n")
    assert "`a.jpg`" in str(shown(biospex.request(archive))["images"].data)

    def refuse(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("flows.support.pictures.contact_sheet", refuse)
    page = shown(biospex.request(archive))
    assert "images" not in page
    assert "1 row in 1 batch" in str(page["summary"].data)


def test_a_run_from_the_form_is_found_by_its_download(
    prefect: SyncPrefectClient, biospex: Biospex
) -> None:
    parameters = {"request": biospex.request(EXPORTS[0], downloadId=77)}
    form = create_batches.to_deployment("form", enforce_parameter_schema=False)
    deployment = cast(RunnerDeployment, form).apply()
    run = prefect.create_flow_run_from_deployment(cast(UUID, deployment), parameters=parameters)
    run_flow(create_batches, flow_run=run, parameters=parameters)
    assert "download-77" in prefect.read_flow_run(run.id).tags


def test_what_a_fault_may_have_kept_from_biospex_is_said(
    shown: Shown, biospex: Biospex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise KeyError("a fault of the program")

    monkeypatch.setattr("flows.split.choose_lane", refuse)
    page = shown(biospex.request(EXPORTS[0]))
    summary = str(page["summary"].data)
    assert summary.startswith("**No batches yet:** ")
    assert (
        "Without one, BIOSPEX has got none yet: the listener tries this export again first."
        in summary
    )
    assert "callback" not in page


def test_text_of_an_export_is_no_markup_on_its_page(
    shown: Shown, biospex: Biospex, tmp_path: Path
) -> None:
    hostile = (
        "<img src=x onerror=alert(1)>[Retry](javascript:x)|`#https://evil.example\x1b[2J\u202e"
    )
    archive = tmp_path / f"{uuid4()}.zip"
    for manifest in (f'imageName\n"{hostile}.jpg"\n', f'imageName\na.jpg\n"{hostile}"\n'):
        with zipfile.ZipFile(archive, "w") as export:
            export.writestr("a.jpg", b"image")
            export.writestr("manifest.csv", manifest)
        page = shown(biospex.request(archive))
        for artifact in (page["summary"], page["callback"]):
            text = re.sub(
                r"(?s)```json.*?```|\*\*(What to do|Archive):.*?\n", "", str(artifact.data)
            )
            assert not re.search(r"(?<!\\)[<`]|(?<!\\)\[Retry|https:", text)
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
