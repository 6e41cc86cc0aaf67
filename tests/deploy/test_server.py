"""Each check of Prefect in deploy/server.py."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)

from deploy import server
from tests.helpers.answers import case, only
from tests.helpers.broken_prefect import broken_prefect


def test_an_api_without_authentication_is_refused(prefect_api: dict[str, str]) -> None:
    found = list(server.check_api(prefect_api["PREFECT_API_URL"]))
    assert [finding.level for finding in found] == ["stop", "stop"]
    assert "is this machine" in found[0].sentence
    assert "answers anybody" in found[1].sentence


def test_a_websocket_that_a_proxy_refuses_is_noted(
    prefect_api: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "POOLS", {})
    monkeypatch.setattr(server, "CREATE_BATCHES", f"{uuid4()}/create-batches")
    asked = case(NOTIFICATION_BLOCK="")
    assert not list(server.check_things(asked))
    with (
        broken_prefect(prefect_api["PREFECT_API_URL"]) as proxy,
        temporary_settings({PREFECT_API_URL: proxy.url}),
    ):
        found = server.check_things(asked)
        only(found, "has to pass WebSocket upgrades", "note")


def test_an_api_with_an_auth_string_is_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.server.api.server import create_api_app  # takes a second, in every worker

    with temporary_settings({PREFECT_SERVER_API_AUTH_STRING: "user:password"}):
        api = create_api_app()

    def post(url: str, **options: Any) -> httpx.Response:
        async def answer() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(api)) as client:
                return await client.post(url, **options)

        return asyncio.run(answer())

    monkeypatch.setattr(httpx, "post", post)
    assert not server.is_open("http://prefect.example.org")


def test_an_address_of_no_api_is_an_error(prefect_api: dict[str, str]) -> None:
    found = list(server.check_api(f"{prefect_api['PREFECT_API_URL']}/api"))
    assert "does not answer: Client error '404 Not Found'" in found[-1].sentence


def test_an_api_that_does_not_answer_is_an_error() -> None:
    only(server.check_api("https://192.0.2.1.invalid/api"), "does not answer")


def test_a_work_pool_of_another_environment_or_type_is_refused(
    prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, name = f"pool-{uuid4()}", f"create-{uuid4()}"
    prefect.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    flow = prefect.create_flow_from_name(name)
    prefect.create_deployment(flow, "create-batches", tags=["export", "dev"])
    monkeypatch.setattr(server, "POOLS", {"splitter": pool})
    monkeypatch.setattr(server, "CREATE_BATCHES", f"{name}/create-batches")
    found = list(server.check_things(case("prod", NOTIFICATION_BLOCK="slack-webhook/none")))
    assert [finding.level for finding in found] == ["stop", "stop", "stop"]
    assert f"{pool} is of the type process" in found[0].sentence
    assert "The deployment create-batches belongs to dev" in found[1].sentence
    assert "create the block in the Prefect UI" in found[2].sentence
    assert len(list(server.check_things(case("dev", NOTIFICATION_BLOCK="")))) == 1
