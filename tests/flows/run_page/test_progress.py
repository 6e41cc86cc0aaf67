"""Progress as a person sees it: of the artifacts of a run, on a real Prefect server."""

import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterId

from flows.run_page.progress import Progress, best_effort

pytestmark = pytest.mark.usefixtures("prefect_api")

Shown = Callable[[Progress], float]


@pytest.fixture
def shown(prefect: SyncPrefectClient) -> Shown:
    """The percentage on the page at this moment."""

    def read(progress: Progress) -> float:
        assert progress._artifact
        here = ArtifactFilter(id=ArtifactFilterId(any_=[progress._artifact]))
        [artifact] = prefect.read_artifacts(artifact_filter=here)
        return float(str(artifact.data))

    return read


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is shown, and a line is logged for it."""
    monkeypatch.setattr("flows.run_page.progress.SECONDS_BETWEEN_UPDATES", 0)
    monkeypatch.setattr("flows.run_page.progress.SECONDS_BETWEEN_LINES", 0)


def test_progress_is_the_share_of_the_total(shown: Shown, impatient: None) -> None:
    @flow
    def transfer() -> list[float]:
        seen = []
        with Progress("Download", 200) as progress:
            seen.append(shown(progress))
            for count in (50, 100, -100):  # the last of which is sent again
                progress(count)
                seen.append(shown(progress))
        return [*seen, shown(progress)]

    assert transfer() == [0, 25, 75, 25, 100]


def test_a_card_shows_the_share_done_and_the_time_left(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(Progress, "_show", lambda _, percent, text: shown.append(text))

    @flow
    def transfer() -> None:
        with pytest.raises(OSError, match="no more"), Progress("Download", 2_000_000) as progress:
            progress._began -= 10
            progress(500_000)
            raise OSError("no more")

    transfer()
    [step, end] = shown
    assert re.fullmatch(r"Download: 25 % of 2\.0 MB, 3\d s to go", step)
    assert end == "Download of 2.0 MB, stopped at 25 %"


def test_a_failed_transfer_keeps_its_progress(shown: Shown) -> None:
    @flow
    def transfer() -> float:
        with pytest.raises(OSError, match="no more"), Progress("Download", 200) as progress:
            progress(50)
            raise OSError("no more")
        return shown(progress)

    assert transfer() == 25


def test_progress_never_exceeds_the_total() -> None:
    @flow
    def percents() -> list[float]:
        more, nothing = Progress("Upload", 10), Progress("Upload", 0)
        more(11)
        return [more.percent, nothing.percent]

    assert percents() == [100, 100]


def test_updates_of_any_thread_are_counted_and_throttled(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.run_page.progress.SECONDS_BETWEEN_UPDATES", 3600)
    updates = []
    monkeypatch.setattr(Progress, "_show", lambda _, *shown: updates.append(shown))

    @flow
    def transfer() -> None:
        with Progress("Upload", 10_000) as progress, ThreadPoolExecutor(8) as pool:
            list(pool.map(progress, [1] * 10_000))
            pool.shutdown()
            assert progress.percent == 100

    transfer()
    assert updates == [(100, "Upload of 10.0 kB")]  # the end alone


def test_a_long_transfer_is_followed_in_the_log(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    @flow
    def transfer() -> None:
        Progress("Download", 2_000_000)(500_000)

    with caplog.at_level(logging.INFO):
        transfer()
    assert "Download: 25 % of 2.0 MB" in caplog.text


def test_display_errors_are_logged_and_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with best_effort("The summary", logging.getLogger("x")):
        raise ConnectionError("Prefect is away")
    assert "The summary could not be shown" in caplog.text
    with pytest.raises(KeyboardInterrupt), best_effort("The summary", logging.getLogger("x")):
        raise KeyboardInterrupt
