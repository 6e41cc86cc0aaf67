"""One emulated AWS and one Prefect server for the whole session, both real, over HTTP."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import refresh_global_settings_context
from prefect.logging.handlers import APILogHandler

from devtools.database import POSTGRESQL, postgresql
from devtools.services import embedded_aws, embedded_prefect
from splitter.aws.s3 import Bucket
from tests.helpers.biospex import Biospex

# A busy machine is slow, not wrong.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

LONGEST_FILES = (
    "test_listen.py",
    "test_serve.py",
    "test_one_answer.py",
    "test_wire_faults.py",
    "test_ecs_worker.py",
    "test_deploy_script.py",
    "test_create_batches.py",
    "test_demo.py",
)

FIXTURES = Path(__file__).parent / "fixtures"
EXPORTS = sorted(FIXTURES.glob("4*"))


@pytest.fixture(scope="session", autouse=True)
def no_temporary_prefect() -> Iterator[None]:
    """A test that forgets to ask for a server fails; Prefect would start one, for ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
        refresh_global_settings_context()
        yield


@pytest.fixture(scope="session")
def aws() -> Iterator[str]:
    """moto's server; the environment leads every client to it. Yields its URL."""
    with embedded_aws() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        yield environment["AWS_ENDPOINT_URL"]


DATABASES = ["SQLite", *(["PostgreSQL"] if POSTGRESQL else [])]

BOTH_DATABASES = pytest.mark.parametrize("prefect_api", DATABASES, indirect=True, scope="session")
"""Mark of tests that run on Prefect's own database and on the one of production."""


@pytest.fixture(scope="session", params=DATABASES[-1:], ids=[pytest.HIDDEN_PARAM])
def prefect_api(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A Prefect server, for this process and its children. Yields their environment.

    It runs on the database of production if that is there.
    """
    home = tmp_path_factory.mktemp("prefect")
    with ExitStack() as stack:
        database = None if request.param == "SQLite" else stack.enter_context(postgresql())
        environment = stack.enter_context(embedded_prefect(home, database=database))
        # The settings of every thread, also of one that does not inherit this one's context.
        stack.callback(refresh_global_settings_context)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in environment.items():
            patch.setenv(name, value)
        refresh_global_settings_context()
        yield environment
        APILogHandler().flush()


@pytest.fixture
def biospex(aws: str) -> Biospex:
    return Biospex.new()


@pytest.fixture
def bucket(biospex: Biospex) -> Bucket:
    """BIOSPEX's bucket as the splitter sees it."""
    return Bucket(biospex.s3, biospex.bucket)


@pytest.fixture
def prefect(prefect_api: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that TMPDIR and EFS_PATH lead to."""
    directory = tmp_path / "workspace"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("EFS_PATH", str(directory))
    return directory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a service, or runs programs of its own, is slow: no part of ``make quick``.

    A file of tests says so itself where it does not show: ``pytestmark = pytest.mark.slow``. The
    longest files begin first, then the slow ones, so that no worker is left alone with one in the
    end.
    """
    for item in items:
        if {"prefect_api", "aws", "object_store"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    longest = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(
        key=lambda item: (longest.get(item.path.name, len(longest)), item.path not in slow_files)
    )
