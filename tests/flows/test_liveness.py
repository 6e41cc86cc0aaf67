"""Silence of a channel is no death, and a process that hangs does not hold the queue up."""

import os
import signal
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings

from devtools.processes import family, process_of
from devtools.proxy import CADDY, NGINX, caddy, nginx
from flows.listening.heartbeats import websocket_problem
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex
from tests.helpers.processes import eventually, run_named, serving

pytestmark = [
    pytest.mark.prefect_server("serve"),
    pytest.mark.usefixtures("prefect_api", "aws"),
    pytest.mark.slow,
]

NO_UPGRADE = ("", "location / { proxy_pass http://127.0.0.1:4200; client_max_body_size 8m; }")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@needs_nginx
@pytest.mark.parametrize("passes_upgrades", [True, False])
def test_nginx_passes_heartbeats_as_documented_and_not_by_default(
    passes_upgrades: bool, prefect_api: dict[str, str], tmp_path: Path
) -> None:
    setup = None if passes_upgrades else NO_UPGRADE
    with (
        nginx(prefect_api["PREFECT_API_URL"], tmp_path, setup) as url,
        temporary_settings({PREFECT_API_URL: url}),
    ):
        assert (websocket_problem() is None) == passes_upgrades


@pytest.mark.skipif(CADDY is None, reason="Caddy is not installed")
def test_caddy_passes_heartbeats_as_documented(prefect_api: dict[str, str], tmp_path: Path) -> None:
    with (
        caddy(prefect_api["PREFECT_API_URL"], tmp_path) as url,
        temporary_settings({PREFECT_API_URL: url}),
    ):
        assert websocket_problem() is None


@needs_nginx
@pytest.mark.soak
def test_behind_a_proxy_without_websockets_a_long_export_is_left_alone(
    prefect_api: dict[str, str], prefect: SyncPrefectClient, biospex: Biospex, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with (
        nginx(prefect_api["PREFECT_API_URL"], tmp_path, NO_UPGRADE) as url,
        log.open("wb") as output,
        serving(biospex, output, PREFECT_API_URL=url, EFS_PATH=str(tmp_path)),
    ):
        request = biospex.request(EXPORTS[0])
        biospex.send(request)
        run = run_named(prefect, f"download 512: {request['file']}", StateType.RUNNING)
        os.kill(eventually(lambda: process_of(run.id)), signal.SIGSTOP)
        time.sleep(300)
        os.kill(eventually(lambda: process_of(run.id)), signal.SIGCONT)
        eventually(lambda: not sum(biospex.triggers()))
        assert prefect.read_flow_run(run.id).run_count == 1
    assert biospex.statuses() == ["success"]
    assert log.read_text().count("heartbeats of this listener do not arrive") == 1


@pytest.mark.soak
def test_a_hanging_process_is_replaced_and_the_next_export_is_split(
    prefect: SyncPrefectClient, biospex: Biospex, tmp_path: Path
) -> None:
    with (
        (tmp_path / "log").open("wb") as output,
        serving(biospex, output, EFS_PATH=str(tmp_path), MAX_IN_FLIGHT="1"),
    ):
        request = biospex.request(EXPORTS[0])
        biospex.send(request)
        run = run_named(prefect, f"download 512: {request['file']}", StateType.RUNNING)
        os.kill(eventually(lambda: process_of(run.id)), signal.SIGSTOP)
        biospex.send(biospex.request(EXPORTS[1]))
        eventually(lambda: sum(biospex.triggers()) < 2, within=300)
        eventually(lambda: not sum(biospex.triggers()))
    assert biospex.statuses() == ["success", "success"]


@pytest.mark.soak
@pytest.mark.parametrize("stopped", [0, 1], ids=["the one in charge", "the other"])
def test_of_two_services_either_may_be_stopped(
    stopped: int, prefect: SyncPrefectClient, biospex: Biospex, tmp_path: Path
) -> None:
    with (
        (tmp_path / "first").open("wb") as first,
        (tmp_path / "second").open("wb") as second,
        serving(biospex, first, EFS_PATH=str(tmp_path)) as one,
    ):
        run_named(prefect, "listen for exports", StateType.RUNNING)
        with serving(biospex, second, EFS_PATH=str(tmp_path)) as other:
            logs = [tmp_path / "first", tmp_path / "second"]
            time.sleep(30)
            in_charge = one if "Stopped; " not in logs[0].read_text() else other
            rest = other if in_charge is one else one
            [in_charge, rest][stopped].terminate()
            [in_charge, rest][stopped].wait(timeout=90)
            biospex.send(biospex.request(EXPORTS[0]))
            eventually(lambda: biospex.triggers()[0] == 0, within=30)
            eventually(lambda: not sum(biospex.triggers()))
    assert biospex.statuses() == ["success"]


@needs_nginx
@pytest.mark.soak
def test_of_two_services_without_websockets_one_may_be_killed(
    prefect_api: dict[str, str], prefect: SyncPrefectClient, biospex: Biospex, tmp_path: Path
) -> None:
    logs = [tmp_path / "first", tmp_path / "second"]
    with (
        nginx(prefect_api["PREFECT_API_URL"], tmp_path, NO_UPGRADE) as url,
        logs[0].open("wb") as first,
        logs[1].open("wb") as second,
        serving(biospex, first, PREFECT_API_URL=url, EFS_PATH=str(tmp_path)),
    ):
        run_named(prefect, "listen for exports", StateType.RUNNING)
        with serving(biospex, second, PREFECT_API_URL=url, EFS_PATH=str(tmp_path)) as in_charge:
            eventually(lambda: "Listening to" in logs[1].read_text())
            for process in family(in_charge.pid):
                os.kill(process, signal.SIGKILL)
            biospex.send(biospex.request(EXPORTS[0]))
            eventually(lambda: not sum(biospex.triggers()), within=480)
    assert biospex.statuses() == ["success"]
