"""Silence of a channel is no death, and a process that hangs does not hold the queue up."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings

from devtools.processes import process_of
from devtools.services import child, free_port
from flows.support.heartbeats import websocket_problem
from tests.conftest import EXPORTS
from tests.helpers.biospex import Biospex
from tests.helpers.processes import eventually, run_named, serving

pytestmark = [
    pytest.mark.prefect_server("serve"),
    pytest.mark.usefixtures("prefect_api", "aws"),
    pytest.mark.slow,
]

ROOT = Path(__file__).parent.parent.parent
NO_UPGRADE = "location / { proxy_pass http://127.0.0.1:4200; client_max_body_size 8m; }"
needs_nginx = pytest.mark.skipif(which("nginx") is None, reason="nginx is not installed")


def documented() -> tuple[str, str]:
    """The map and the location for nginx in docs/where-prefect-runs.md."""
    page = (ROOT / "docs/where-prefect-runs.md").read_text()
    found = re.search(r"```nginx\n(map .*?\})\n(.*?)```", page, re.S)
    assert found
    location = re.search(r"location / \{.*?\}", found[2], re.S)
    assert location
    return found[1], location[0]


@contextmanager
def nginx(api: str, home: Path, mapping: str, location: str) -> Iterator[str]:
    """nginx before Prefect's API; yields the URL of the API behind it."""
    port = free_port()
    server = api.removesuffix("/api").removeprefix("http://")
    paths = "".join(
        f"{name}_temp_path {home}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (home / "nginx.conf").write_text(
        f"pid {home}/pid; error_log {home}/error.log; daemon off; user root; events {{}}\n"
        f"http {{ access_log off; {paths} {mapping}\n"
        f"server {{ listen 127.0.0.1:{port}; "
        f"{location.replace('127.0.0.1:4200', server)} }} }}\n"
    )
    with (
        (home / "nginx.log").open("wb") as log,
        child(["nginx", "-c", str(home / "nginx.conf")], {}, log),
    ):
        yield f"http://127.0.0.1:{port}/api"


@needs_nginx
@pytest.mark.parametrize("passes_upgrades", [True, False])
def test_the_documented_proxy_passes_heartbeats_and_a_plain_one_does_not(
    passes_upgrades: bool, prefect_api: dict[str, str], tmp_path: Path
) -> None:
    mapping, location = documented() if passes_upgrades else ("", NO_UPGRADE)
    with (
        nginx(prefect_api["PREFECT_API_URL"], tmp_path, mapping, location) as url,
        temporary_settings({PREFECT_API_URL: url}),
    ):
        problem = eventually(lambda: [websocket_problem()])[0]
        assert (problem is None) == passes_upgrades


@needs_nginx
@pytest.mark.soak
def test_behind_a_proxy_without_websockets_a_long_export_is_left_alone(
    prefect_api: dict[str, str], prefect: SyncPrefectClient, biospex: Biospex, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with (
        nginx(prefect_api["PREFECT_API_URL"], tmp_path, "", NO_UPGRADE) as url,
        log.open("wb") as output,
        serving(biospex, output, PREFECT_API_URL=url, EFS_PATH=str(tmp_path)),
    ):
        request = biospex.request(EXPORTS[0])
        biospex.send(request)
        run = run_named(prefect, f"download 512: {request['file']}", StateType.RUNNING)
        os.kill(eventually(lambda: process_of(run.id)), signal.SIGSTOP)
        time.sleep(150)
        os.kill(eventually(lambda: process_of(run.id)), signal.SIGCONT)
        eventually(lambda: not sum(biospex.triggers()))
        assert prefect.read_flow_run(run.id).run_count == 1
    assert biospex.statuses() == ["success"]
    assert log.read_text().count("heartbeats of this listener do not arrive") == 1


@pytest.mark.soak
def test_a_process_that_hangs_for_good_is_replaced_and_the_next_export_goes_on(
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
            eventually(lambda: "Served again" in logs[1].read_text() or other.poll() is None)
            time.sleep(30)
            in_charge = one if "Stopped; " not in logs[0].read_text() else other
            rest = other if in_charge is one else one
            [in_charge, rest][stopped].terminate()
            [in_charge, rest][stopped].wait(timeout=90)
            biospex.send(biospex.request(EXPORTS[0]))
            eventually(lambda: biospex.triggers()[0] == 0, within=45)
            eventually(lambda: not sum(biospex.triggers()))
    assert biospex.statuses() == ["success"]
