"""Fixtures and marks of the whole suite: an emulated AWS and real Prefect servers, over HTTP."""

import gc
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from hypothesis import HealthCheck, settings
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import refresh_global_settings_context
from prefect.logging.handlers import APILogHandler
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from devtools.services import embedded_aws
from splitter.aws.s3 import Bucket
from tests.helpers.biospex import Biospex
from tests.helpers.shared import prefect_server, shared_services

# A busy machine is slow, not wrong.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Otherwise each new session parses botocore's tables of services, which takes 0.1 seconds.
botocore.session.create_loader = cache(botocore.session.create_loader)

ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
EXPORTS = sorted(FIXTURES.glob("4*"))

BOTH_DATABASES = pytest.mark.parametrize(
    "prefect_api",
    ["PostgreSQL", pytest.param("SQLite", marks=pytest.mark.soak)],
    indirect=True,
    scope="module",
)
"""Mark of tests that ``make soak`` repeats on SQLite."""

SERVICES = {"prefect_api", "aws", "object_store"}
"""Fixtures that make a test slow."""


# -- what pytest calls


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # it is the process that starts the workers
        stack = ExitStack()
        stack.enter_context(shared_services())
        config.add_cleanup(stack.close)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as at Ctrl-C


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that use a service as slow, and begin with those that have to wait for others.

    A file whose tests are slow for another reason marks itself.
    """
    for item in items:
        if SERVICES & set(getattr(item, "fixturenames", ())) or item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.slow)
    items.sort(
        key=lambda item: (
            item.get_closest_marker("prefect_server") is None,
            item.get_closest_marker("slow") is None,
        )
    )


def pytest_collection_finish() -> None:
    """Keep the modules and tests, which live to the end, out of each garbage collection."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return Scheduling(config, log)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Deals tests out one by one, but groups of tests as a whole to one worker.

    A group is the tests of one ``prefect_server``, or those of a file with fixtures of the scope
    "module". The groups of pytest-xdist 3.8 do not work with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.partition("::")[0]) or nodeid


@cache
def group_of(file: str) -> str | None:
    """Return the group of a file's tests; the process that deals them out imports no test."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if server := re.search(r'mark\.prefect_server\("(\w+)"\)', text):
        return server[1]
    return file if 'scope="module"' in text else None


# -- AWS


@pytest.fixture(scope="session")
def aws() -> Iterator[str]:
    """Moto's server, to which the environment leads every client. Yields its URL."""
    with embedded_aws() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        yield environment["AWS_ENDPOINT_URL"]


@pytest.fixture
def biospex(aws: str) -> Biospex:
    """A bucket and queues of this test's own, and BIOSPEX's side of them."""
    return Biospex.new()


@pytest.fixture
def bucket(biospex: Biospex) -> Bucket:
    """BIOSPEX's bucket as the splitter sees it."""
    return Bucket(biospex.s3, biospex.bucket)


# -- Prefect


@pytest.fixture(scope="session", autouse=True)
def no_temporary_prefect() -> Iterator[None]:
    """Let a test fail that needs a server and does not ask for one; Prefect would start its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
        refresh_global_settings_context()
        yield


@pytest.fixture(scope="module")
def prefect_api(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """A Prefect server, for this process and its children. Yields their environment.

    All workers share it, so a test gives its deployments and blocks names of their own. Tests that
    need the real names have the mark ``prefect_server``: another server, which they use one after
    the other.
    """
    mark = request.node.get_closest_marker("prefect_server")
    database = getattr(request, "param", "PostgreSQL")
    name = mark.args[0] if mark else f"shared-{database}"
    with ExitStack() as stack:
        # The settings of every thread, also of one that does not inherit this one's context.
        stack.callback(refresh_global_settings_context)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        environment = prefect_server(name, database)
        for variable, value in environment.items():
            patch.setenv(variable, value)
        refresh_global_settings_context()
        yield environment
        APILogHandler().flush()


@pytest.fixture
def prefect(prefect_api: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


# -- files


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that TMPDIR and EFS_PATH lead to."""
    directory = tmp_path / "workspace"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("EFS_PATH", str(directory))
    return directory
