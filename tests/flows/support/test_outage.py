"""Errors that count as an outage, and a loop that goes through one."""

import threading
from collections.abc import Iterator

import httpx
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from prefect.logging import disable_run_logger
from prefect.settings import get_current_settings

from flows.support.outage import MANY_RETRIES, Outage, is_outage, waits_for_prefect

REQUEST = httpx.Request("GET", "http://127.0.0.1/api/health")


def answered(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("", request=REQUEST, response=httpx.Response(status))


def refused(code: str, status: int) -> ClientError:
    return ClientError(
        {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "ReceiveMessage",
    )


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (httpx.ConnectError("refused"), True),
        (httpx.ReadTimeout("silent"), True),
        (answered(503), True),
        (answered(429), True),
        (answered(404), False),
        (answered(422), False),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1"), True),
        (refused("ServiceUnavailable", 503), True),
        (refused("AccessDenied", 403), False),
        (refused("ExpiredToken", 400), False),
        (refused("ExpiredTokenException", 403), False),
        (ConnectionError("reset"), True),
        (ValueError("nobody thought of it"), False),
    ],
    ids=repr,
)
def test_unavailable_services_are_outages_and_refusals_are_not(
    error: Exception, passes: bool
) -> None:
    assert is_outage(error) == passes


@pytest.fixture
def outage() -> Iterator[Outage]:
    with disable_run_logger():
        yield Outage()


@pytest.fixture
def stopping() -> threading.Event:
    """Set, so that nothing waits."""
    event = threading.Event()
    event.set()
    return event


def test_other_errors_are_passed_on(outage: Outage, stopping: threading.Event) -> None:
    with pytest.raises(ValueError, match="nobody"), outage.wait_out_outage(stopping):
        raise ValueError("nobody thought of it")


def test_an_outage_and_its_end_are_logged_once_each(
    outage: Outage, stopping: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(outage._logger, "warning", lambda line, *_: lines.append(line))
    monkeypatch.setattr(outage._logger, "info", lambda line, *_: lines.append(line))
    for away, seconds in ((True, 60), (True, 60), (False, 5), (True, 0), (False, 0), (False, 60)):
        monkeypatch.setattr(outage, "SECONDS_UNTIL_OVER", 0 if seconds == 60 else 1000)
        with outage.wait_out_outage(stopping):
            if away:
                raise ConnectionError("Prefect is away")
    assert [line.split()[0] for line in lines] == ["Waiting", "All"]


def test_prefects_client_retries_exactly_the_codes_of_an_outage() -> None:
    with waits_for_prefect():
        repeated = get_current_settings().client.retry_extra_codes
    assert {status for status in range(400, 600) if is_outage(answered(status))} == repeated


def test_code_that_waits_for_prefect_retries_longer_than_by_default() -> None:
    usual = get_current_settings().client.max_retries
    with waits_for_prefect():
        assert get_current_settings().client.max_retries == MANY_RETRIES > usual
    assert get_current_settings().client.max_retries == usual
