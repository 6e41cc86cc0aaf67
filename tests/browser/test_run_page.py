"""The pages of Prefect's V2 UI in a real browser answer the questions that people have about a run.

Which rows are in batch 3, why did it fail and who must act, what was sent to BIOSPEX, how do I
repeat it, where are the files? Chromium is the system's; without it these tests are skipped. If
Prefect changes its default UI, these tests fail.
"""

import shutil
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast
from urllib.parse import quote
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.flow_engine import run_flow
from prefect_aws import AwsCredentials
from prefect_aws.client_parameters import AwsClientParameters

from blocks.saved import BLOCK_NAME
from devtools.services import REGION, child, end_at_once
from flows.create_batches import create_batches
from flows.support.run_tags import deployment_tags, run_page, runs_page
from splitter.settings import Settings
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex
from tests.helpers.faulty_proxy import Rule, faulty_proxy
from tests.helpers.processes import run_named

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from playwright.sync_api import Page, expect, sync_playwright

pytestmark = pytest.mark.prefect_server("serve")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no Chromium (apt-get install chromium)", allow_module_level=True)

OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-software-rasterizer",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 15_000
"""Milliseconds until what is looked for has to be on the page."""

FINISHED, FAILED, RUNNING = 901, 902, 903
"""Downloads, one for each end of a run that a person may look at."""


@pytest.fixture(scope="module")
def runs(
    aws: str, prefect_api: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, FlowRun]]:
    """A finished, a failed and a running export; the latter waits for an answer of S3."""
    biospex = Biospex.new()
    directory = tmp_path_factory.mktemp("archives")
    broken, stuck = directory / "41-broken.zip", directory / "41-stuck.zip"
    broken.write_bytes(EXPORTS[0].read_bytes()[:100_000])
    stuck.write_bytes(EXPORTS[0].read_bytes())
    with ExitStack() as stack:
        proxy = stack.enter_context(faulty_proxy())
        last_batch = f"{stuck.stem}-part3.zip"
        proxy.inject(Rule("PutObject", "silent", last_batch, times=1000))
        proxies = {"proxies": {"http": proxy.url, "https": proxy.url}}
        parameters = AwsClientParameters(verify=False, config=proxies)
        AwsCredentials(region_name=REGION, aws_client_parameters=parameters).save(BLOCK_NAME)
        stack.callback(AwsCredentials.delete, BLOCK_NAME)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for variable in ("TMPDIR", "EFS_PATH"):
            patch.setenv(variable, str(directory))
        patch.setattr("tempfile.tempdir", None)
        patch.setenv("BATCH_SIZE", "10")
        prefect = stack.enter_context(get_client(sync_client=True))
        tags = deployment_tags("export", Settings())
        form = create_batches.to_deployment("page", tags=tags, enforce_parameter_schema=False)
        deployment = cast(UUID, cast(RunnerDeployment, form).apply())

        def scheduled(archive: Path, download: int) -> FlowRun:
            parameters = {"request": biospex.request(archive, downloadId=download)}
            return prefect.create_flow_run_from_deployment(deployment, parameters=parameters)

        waiting = scheduled(stuck, RUNNING)
        command = [sys.executable, "-m", "prefect", "flow-run", "execute", str(waiting.id)]
        process = stack.enter_context(child(command, {}, None))
        stack.callback(end_at_once, process)
        for download, archive in ((FINISHED, EXPORTS[0]), (FAILED, broken)):
            run = scheduled(archive, download)
            run_flow(create_batches, run, run.parameters, return_type="state")
        wanted = {
            FINISHED: (EXPORTS[0], StateType.COMPLETED),
            FAILED: (broken, StateType.FAILED),
            RUNNING: (stuck, StateType.RUNNING),
        }
        yield {
            download: run_named(prefect, f"download {download}: {archive.name}", state)
            for download, (archive, state) in wanted.items()
        }


@pytest.fixture(scope="module")
def page(runs: dict[int, FlowRun]) -> Iterator[Page]:
    """A page of Chromium, one for all tests, so that the UI's programs are loaded once.

    It opens after the runs have started, as Playwright's event loop would be in their way.
    """
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        opened = chromium.new_page(
            viewport={"width": 1280, "height": 1000}, reduced_motion="reduce"
        )
        opened.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield opened
        chromium.close()


def shows(page: Page, *texts: str) -> None:
    """Each text is visible somewhere on the page."""
    for text in texts:
        found = page.get_by_text(text).filter(visible=True).first
        expect(found).to_be_visible()


def open_artifact(page: Page, run: FlowRun, key: str) -> None:
    """Go from the run's page to one of its artifacts, as a person does."""
    page.goto(run_page(run.id))
    page.get_by_role("tab", name="Artifacts").click()
    cards = page.locator("a[href*='/artifacts/artifact/']")
    cards.filter(has=page.get_by_text(key, exact=True)).first.click()
    page.wait_for_url("**/artifacts/artifact/**")


def actions(page: Page) -> list[str]:
    """The entries of the run page's menu."""
    page.get_by_role("button", name="Open menu").click()
    page.get_by_role("menuitem").first.wait_for()
    return [entry.inner_text() for entry in page.get_by_role("menuitem").all()]


def test_the_address_of_the_ui_opens_the_ui_that_these_tests_look_at(
    prefect_api: dict[str, str], page: Page
) -> None:
    page.goto(prefect_api["PREFECT_UI_URL"])
    page.wait_for_url("**/v2/dashboard**")


def test_the_page_of_a_finished_run_answers_five_questions(
    runs: dict[int, FlowRun], page: Page
) -> None:
    page.goto(run_page(runs[FINISHED].id))
    shows(page, "Completed", f"download {FINISHED}: {EXPORTS[0].name}")
    page.get_by_role("tab", name="Details").click()
    shows(page, "25 rows in 3 batches")
    assert "Retry" in actions(page)

    # Which rows are in batch 3?
    open_artifact(page, runs[FINISHED], "batches")
    expect(page.get_by_role("row").nth(3)).to_contain_text("21-25")
    # What was sent to BIOSPEX?
    open_artifact(page, runs[FINISHED], "callback")
    shows(page, "Sent to BIOSPEX: 3 batches are ready.", f"{EXPORTS[0].stem}-part3.zip")
    # How do I repeat it? Where are the files?
    open_artifact(page, runs[FINISHED], "summary")
    shows(page, "25 rows in 3 batches", "rows 21 to 25", "Run it again", "Retry")
    for number in (1, 2, 3):
        link = page.get_by_role("link", name=f"{EXPORTS[0].stem}-part{number}.zip")
        address = str(link.get_attribute("href"))
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.read(4) == b"PK\x03\x04"
    open_artifact(page, runs[FINISHED], "images")
    picture = page.get_by_alt_text("thumbnails")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 100


def test_the_page_of_a_failed_run_names_the_reason_and_the_remedy(
    runs: dict[int, FlowRun], page: Page
) -> None:
    page.goto(run_page(runs[FAILED].id))
    shows(page, "Export refused", f"download {FAILED}: ")
    page.get_by_role("tab", name="Details").click()
    shows(page, "The archive is damaged or incomplete")
    assert "Retry" in actions(page)

    # Which batches? Why did it fail, who must act and how? How do I repeat it? Where is the file?
    open_artifact(page, runs[FAILED], "summary")
    shows(page, "No batches: The archive is damaged or incomplete")
    shows(page, "Who must act: whoever made the export", "What to do:", "aws s3 cp")
    shows(page, "Run it again", "export/41-broken.zip")
    # What was sent to BIOSPEX?
    open_artifact(page, runs[FAILED], "callback")
    shows(page, "Sent to BIOSPEX: The archive is damaged or incomplete")


def test_the_page_of_a_running_run_shows_its_progress(runs: dict[int, FlowRun], page: Page) -> None:
    page.goto(run_page(runs[RUNNING].id))
    shows(page, "Running", f"download {RUNNING}: ")
    page.get_by_role("tab", name="Task Runs").click()
    shows(page, "zip and upload batch 3 of 3, rows 21-25")
    assert "Cancel" in actions(page)

    # Which rows are in batch 3? What was sent to BIOSPEX? How do I repeat it? Where are the files?
    open_artifact(page, runs[RUNNING], "summary")
    shows(page, "41-stuck-part3.zip: rows 21 to 25", "BIOSPEX gets its callback when all batches")
    shows(page, "/batch/ when it is complete", "then Retry")


def test_runs_are_found_by_tag_and_by_state(
    runs: dict[int, FlowRun], prefect: SyncPrefectClient, page: Page
) -> None:
    page.goto(runs_page("export"))
    shows(page, *(run.name for run in runs.values()))
    assert page.get_by_text("listen for exports").count() == 0
    page.goto(f"{runs_page('export')}&state={quote(str(runs[FAILED].state_name))}")
    shows(page, runs[FAILED].name)
    expect(page.get_by_text(runs[FINISHED].name)).to_have_count(0)
    page.goto(runs_page(f"download-{FINISHED}"))
    shows(page, runs[FINISHED].name)
    expect(page.get_by_text(runs[FAILED].name)).to_have_count(0)
