"""deploy/consumers.py: who takes messages from the trigger queue."""

from types import SimpleNamespace

import pytest

from deploy import consumers
from devtools.services import REGION
from tests.helpers.biospex import client


def test_the_queue_has_exactly_one_consumer(
    mapping: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arn, uuid = mapping
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    runs: list[SimpleNamespace] = []
    monkeypatch.setattr("deploy.server.listeners", lambda: runs)

    def printed() -> list[str]:
        consumers.main([arn])
        return capsys.readouterr().out.splitlines()

    [found] = printed()
    assert found.startswith("Lambda arn:aws:lambda:")
    runs[:] = [
        SimpleNamespace(name="listener-1", state_type="RUNNING"),
        SimpleNamespace(name="listener-2", state_type="SCHEDULED"),
    ]
    with pytest.raises(SystemExit, match="2 consumers take triggers"):
        printed()
    client("lambda").update_event_source_mapping(UUID=uuid, Enabled=False)
    assert printed()[-1:] == ["listener listener-1"]
    runs.clear()
    with pytest.raises(SystemExit, match="Nobody takes triggers"):
        printed()


def test_an_error_of_aws_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    with pytest.raises(SystemExit, match="AWS answers with an error: Could not connect"):
        consumers.main([f"arn:aws:sqs:{REGION}:123456789012:missing"])
