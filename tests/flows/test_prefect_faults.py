"""Errors of Prefect's API cost no message its answer, and little log."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType

from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex, messages
from tests.helpers.broken_prefect import RESET, broken_prefect, creations, everything, some
from tests.helpers.processes import eventually, run_named, serving

pytestmark = [
    pytest.mark.prefect_server("serve"),
    pytest.mark.usefixtures("aws"),
    pytest.mark.soak,
]

EXPORTS_EACH = 2
LOUD = re.compile(r"\| (WARNING|ERROR|CRITICAL) +\|")


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (creations(500), 40),
        (creations(503), 40),
        (creations(429), 40),
        (creations(404), 40),
        (creations(RESET), 40),
        (some(500, 0.2), 60),
        (everything(500), 100),
    ],
    ids=["500", "503", "429", "404", "reset", "20 % of all", "all for 100 s"],
)
def test_each_message_is_answered_once_after_errors_of_prefect(
    fault: Callable[[str, str], int | None],
    seconds: float,
    prefect_api: dict[str, str],
    prefect: SyncPrefectClient,
    biospex: Biospex,
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    with (
        broken_prefect(prefect_api["PREFECT_API_URL"]) as broken,
        log.open("wb") as output,
        serving(
            biospex,
            output,
            PREFECT_API_URL=broken.url,
            EFS_PATH=str(tmp_path),
            BATCH_SIZE="100",
        ) as service,
    ):
        run_named(prefect, "listen for exports", StateType.RUNNING)
        eventually(lambda: "Listening to" in log.read_text())
        before = len(LOUD.findall(log.read_text()))
        broken.fault = fault
        for number in range(EXPORTS_EACH):
            biospex.send(biospex.request(EXPORTS[0], downloadId=number))
        time.sleep(seconds)
        broken.fault = lambda method, path: None
        eventually(lambda: not sum(biospex.triggers()))
        assert service.poll() is None
    assert broken.broken > 0
    answers = {answer["downloadId"]: answer["status"] for answer in biospex.callbacks()}
    assert answers == dict.fromkeys(range(EXPORTS_EACH), "success")
    assert sum(messages(biospex.sqs, f"{biospex.trigger_queue_url}-dead")) == 0
    assert len(LOUD.findall(log.read_text())) - before <= 10, log.read_text()
