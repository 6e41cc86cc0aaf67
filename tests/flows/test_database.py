"""Prefect's database is restarted during exports: each is split in one attempt."""

import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings

from devtools.database import POSTGRESQL, postgresql
from devtools.services import embedded_prefect
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex
from tests.helpers.processes import eventually, run_named, serving

pytestmark = [
    pytest.mark.usefixtures("aws"),
    pytest.mark.soak,
    pytest.mark.skipif(POSTGRESQL is None, reason="no wheel of PostgreSQL for this system"),
]

SECONDS_AWAY = 20


def test_exports_outlast_two_restarts_of_the_database(biospex: Biospex, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        postgresql() as database,
        embedded_prefect(tmp_path, database=database.url) as environment,
        temporary_settings({PREFECT_API_URL: environment["PREFECT_API_URL"]}),
        log.open("wb") as output,
        serving(
            biospex, output, **environment, MAX_IN_FLIGHT="2", EFS_PATH=str(tmp_path)
        ) as service,
        get_client(sync_client=True) as prefect,
    ):
        requests = [biospex.request(EXPORTS[0], downloadId=number) for number in range(3)]
        biospex.send(*requests)
        for number in (0, 2):
            run_named(prefect, f"download {number}: {EXPORTS[0].name}", StateType.RUNNING)
            database.stop("immediate")
            time.sleep(SECONDS_AWAY)
            database.start()
            eventually(lambda: prefect.api_healthcheck() is None)
        eventually(lambda: not sum(biospex.triggers()))
        assert service.poll() is None
        counts = [run.run_count for run in prefect.read_flow_runs() if "download" in run.name]
    assert sorted(callback["downloadId"] for callback in biospex.callbacks()) == [0, 1, 2]
    assert counts == [1, 1, 1], log.read_text()
