import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitter.errors import SetupError
from splitter.messages import (
    MAX_BODY_BYTES,
    MAX_TRIGGER_BYTES,
    MAX_TRIGGER_DEPTH,
    Failure,
    ReplyAddress,
    Request,
    RequestError,
    Result,
    find_flaw,
    find_wrapping,
    parse_body,
    spelled_out,
    title,
    to_json,
)
from splitter.sentences import Actor
from tests.helpers.messages import STEM, TRIGGER, trigger

DOWNLOAD_IDS = [512, 0, -1, 2**63 - 1, "512", "", "ü", 5.5, 512.0, True, False]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from([*TRIGGER]), inner),
    max_leaves=9,
)


def refusal_of(message: Any) -> str:
    with pytest.raises(RequestError) as refusal:
        Request.parse(message)
    return str(refusal.value)


def test_the_contracts_trigger_is_understood() -> None:
    request = Request.parse(TRIGGER)
    assert request.download_id == 512
    assert request.file == f"{STEM}.zip"
    assert request.export_path == f"export/{STEM}.zip"
    assert request.total_size == 2456719374
    assert request.s3_bucket == "biospex-app"
    assert request.updates_queue_url == TRIGGER["updatesQueueUrl"]


def test_unknown_fields_are_ignored() -> None:
    assert Request.parse(trigger(priority="high")) == Request.parse(TRIGGER)


def test_a_request_may_be_passed_on_as_a_request_or_as_its_wire_form() -> None:
    request = Request.parse(TRIGGER)
    assert Request.parse(request) == request
    assert request.model_dump(by_alias=True) == TRIGGER


@pytest.mark.parametrize("field", [name for name in TRIGGER if name != "totalSize"])
def test_a_missing_field_is_named(field: str) -> None:
    message = trigger()
    del message[field]
    assert f"'{field}' is missing" in refusal_of(message)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("downloadId", None),
        ("downloadId", [512]),
        ("downloadId", float("nan")),
        ("file", 41),
        ("file", ""),
        ("file", ".zip"),
        ("file", "   "),
        ("file", "../export.zip"),
        ("file", "folder/export.zip"),
        ("file", "folder\\export.zip"),
        ("file", "a..zip"),
        ("file", "a\n.zip"),
        ("file", "a\0.zip"),
        ("file", "a" * 1001 + ".zip"),
        ("file", "\ud800.zip"),
        ("exportPath", ""),
        ("exportPath", "export/\n"),
        ("exportPath", "ü" * 600),
        ("exportPath", "s3://another-bucket/export/a.zip"),
        ("exportPath", "https://example.org/biospex-app/export/a.zip"),
        ("exportPath", "https://[::1"),
        ("exportPath", "export/evil.zip"),
        ("exportPath", f"export/x{STEM}.zip"),
        ("exportPath", f"batch/{STEM}.zip"),
        ("exportPath", f"export/\u202e/{STEM}.zip"),
        ("file", "a\u202egpj.zip"),
        ("file", "a\x9b.zip"),
        ("totalSize", -1),
        ("totalSize", 1.5),
        ("s3Bucket", ""),
        ("s3Bucket", "Biospex App"),
        ("s3Bucket", "biospex-app\n"),
        ("s3Bucket", "arn:aws:s3:::biospex/export"),
        ("s3Bucket", 5),
        ("updatesQueueUrl", ""),
        ("updatesQueueUrl", "file:///etc/passwd"),
        ("updatesQueueUrl", "https://"),
        ("updatesQueueUrl", "https://[::1"),
        ("updatesQueueUrl", "https://sqs.example.org@elsewhere.example/1/q"),
        ("updatesQueueUrl", "https://sqs.example.org/1/../2/q"),
        ("updatesQueueUrl", "https://sqs.example.org/1/q?Action=Purge"),
        ("updatesQueueUrl", "https://sqs.example.org/1/q\n"),
        ("updatesQueueUrl", "https://sqs.example.org/1/%2e%2e/2/q"),
        ("updatesQueueUrl", "https://sqs.example.org/1/q\u202e"),
        ("updatesQueueUrl", "https://sqs.example.org/" + "q" * 600),
        ("updatesQueueUrl", None),
    ],
    ids=repr,
)
def test_a_wrong_field_is_named_in_one_line(field: str, value: object) -> None:
    complaint = refusal_of(trigger(**{field: value}))
    assert f"'{field}'" in complaint
    assert not [other for other in TRIGGER if other != field and f"'{other}'" in complaint]
    assert len(complaint.splitlines()) == 1


def test_every_wrong_field_is_named_at_once() -> None:
    complaint = refusal_of({"file": "a/b.zip", "totalSize": -1})
    assert all(f"'{field}'" in complaint for field in TRIGGER)


@pytest.mark.parametrize("message", [None, 5, "text", [], [TRIGGER], {}], ids=repr)
def test_any_other_message_is_refused(message: object) -> None:
    assert refusal_of(message)


@given(JSON | st.fixed_dictionaries(dict.fromkeys(TRIGGER, JSON)))
def test_any_json_is_a_request_or_refused_with_a_reason(message: Any) -> None:
    try:
        Request.parse(message)
    except RequestError as refusal:
        assert len(str(refusal).splitlines()) == 1
        assert str(refusal).encode()


@given(JSON)
def test_any_json_names_a_place_for_the_answer_or_none(message: Any) -> None:
    assert ReplyAddress.of(message) is None or isinstance(message, dict)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tgz", ".tar", ".ZIP", ""])
def test_batches_are_named_after_the_archive_without_its_suffix(suffix: str) -> None:
    request = Request.parse(trigger(file=STEM + suffix, exportPath=f"export/{STEM}{suffix}"))
    assert request.stem == STEM
    assert request.batch_file(1) == f"{STEM}-part1.zip"
    assert request.batch_key(12) == f"batch/{STEM}-part12.zip"


@pytest.mark.parametrize("download_id", DOWNLOAD_IDS, ids=repr)
def test_the_download_id_comes_back_as_it_was_sent(download_id: object) -> None:
    request = Request.parse(json.loads(json.dumps(trigger(downloadId=download_id))))
    for message in (
        Result(download_id=request.download_id, batch_files=["a-part1.zip"]),
        Failure(download_id=request.download_id, error="a reason"),
    ):
        answer = json.loads(to_json(message))["downloadId"]
        assert (type(answer), answer) == (type(download_id), download_id)


def test_the_callbacks_are_the_contracts() -> None:
    assert to_json(Result(download_id=512, batch_files=["x-part1.zip", "x-part2.zip"])) == (
        '{"function": "BiospexBatchCreator", "status": "success", "downloadId": 512,'
        ' "batchFiles": ["x-part1.zip", "x-part2.zip"]}'
    )
    assert to_json(Failure(download_id=512, error="The archive is empty.")) == (
        '{"function": "BiospexBatchCreator", "status": "failed", "downloadId": 512,'
        ' "error": "The archive is empty."}'
    )


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_callback_has_no_character_that_sqs_refuses(text: str) -> None:
    body = to_json(Failure(download_id=512, error=text))
    assert body.isascii()
    assert body.isprintable()
    assert json.loads(body)["error"] == text


@pytest.mark.parametrize(
    "message",
    [
        {key: TRIGGER[key] for key in ("downloadId", "updatesQueueUrl")},
        trigger(file="../x.zip", totalSize="?", s3Bucket=None),
        Request.parse(TRIGGER),
    ],
    ids=["nothing else", "the rest is wrong", "a request"],
)
def test_a_message_that_names_its_queue_and_download_can_be_answered(message: object) -> None:
    address = ReplyAddress.of(message)
    assert address
    assert address.download_id == 512
    assert address.updates_queue_url == TRIGGER["updatesQueueUrl"]


@pytest.mark.parametrize(
    "message",
    [
        trigger(downloadId=None),
        trigger(downloadId=float("nan")),
        trigger(updatesQueueUrl="prod-batch-update"),
        {"downloadId": 512},
        "text",
        None,
    ],
    ids=repr,
)
def test_a_message_that_does_not_cannot_be_answered(message: object) -> None:
    assert ReplyAddress.of(message) is None


def test_the_longest_file_name_still_leads_to_a_key_that_s3_takes() -> None:
    file = "a" * (1024 - 20)
    request = Request.parse(trigger(file=file, exportPath=file))
    assert len(request.batch_key(10_000).encode()) == 1024


def test_more_batches_than_a_message_can_name_are_refused() -> None:
    request = Request.parse(TRIGGER)
    assert len(Result.of(request, 3).batch_files) == 3
    assert len(to_json(Result.of(request, 4000))) < 256 * 1024
    with pytest.raises(SetupError, match=r"5,000 batches are more than one message.*BATCH_SIZE"):
        Result.of(request, 5000)


@pytest.mark.parametrize(
    "body", ["", "{", "not JSON", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '["\\ud800"]']
)
def test_invalid_json_is_none(body: str) -> None:
    assert parse_body(body) is None


def test_a_message_nested_beyond_pythons_own_limit_is_none() -> None:
    assert parse_body("[" * 100_000 + "]" * 100_000) is None


WRAPPED: dict[str, Any] = {
    "a notification of SNS": {
        "Type": "Notification",
        "MessageId": "63a3f6b6-d533-4a47-aef9-fcf5cf758c76",
        "TopicArn": "arn:aws:sns:us-east-2:123456789012:exports",
        "Message": json.dumps(TRIGGER),
        "Timestamp": "2026-11-28T05:12:16.901Z",
    },
    "an event of EventBridge": {
        "version": "0",
        "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa",
        "detail-type": "export",
        "source": "biospex",
        "detail": TRIGGER,
    },
    "an event notification of an S3 bucket": {
        "Records": [{"eventSource": "aws:s3", "s3": {"object": {"key": TRIGGER["exportPath"]}}}]
    },
}
TEST_EVENT = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "biospex-app"}


@pytest.mark.parametrize(
    ("origin", "message"),
    [*WRAPPED.items(), ("an event notification of an S3 bucket", TEST_EVENT)],
    ids=repr,
)
def test_a_wrapped_request_is_refused_by_the_name_of_its_wrapper(origin: str, message: Any) -> None:
    wrapping = find_wrapping(message)
    assert wrapping is not None
    assert origin in wrapping.text
    assert wrapping.text in refusal_of(message)
    assert ReplyAddress.of(message) is None  # so it becomes a dead letter


@pytest.mark.parametrize(
    "message", [TRIGGER, None, [], {"Records": [5]}, {"Records": {}}], ids=repr
)
def test_any_other_message_is_not_called_wrapped(message: Any) -> None:
    assert find_wrapping(message) is None
    if isinstance(message, dict):
        assert (
            find_wrapping({**message, **WRAPPED["a notification of SNS"], "downloadId": 5}) is None
        )


@pytest.mark.parametrize("character", ["\0", "\x01", "\n", "\x7f"])
@pytest.mark.parametrize("field", [*TRIGGER, "unknown"])
def test_a_control_character_is_refused_anywhere_and_the_field_named(
    field: str, character: str
) -> None:
    for value in (f"a{character}b", [{"deep": f"{character}"}]):
        assert f"'{field}'" in refusal_of(trigger(**{field: value}))
    assert "name of a field" in refusal_of(trigger(**{f"a{character}": 1}))


VARIABLE = {"__prefect_kind": "workspace_variable", "variable_name": "secret"}
TEMPLATE = {"__prefect_kind": "jinja", "template": "{{ 'a' * 50_000_000 }}"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"note": "a" * MAX_TRIGGER_BYTES}, "longer than 16,384 bytes"),
        *(({field: VARIABLE}, "begins with '__'") for field in ("file", "s3Bucket", "unknown")),
        ({"more": {"deep": [{"x": TEMPLATE}]}}, "begins with '__'"),
        ({**TEMPLATE}, "begins with '__'"),
        ({"note": 10**30}, "too large a number"),
        ({"downloadId": 10**30}, "'downloadId' is too large a number"),
    ],
    ids=["long", "file", "bucket", "other field", "deep", "itself", "number", "id"],
)
def test_a_message_that_no_service_should_be_given_is_refused(
    changes: dict[str, Any], sentence: str
) -> None:
    assert sentence in refusal_of(trigger(**changes))


def test_a_message_is_refused_from_a_depth() -> None:
    deep: Any = 1
    for _ in range(MAX_TRIGGER_DEPTH):
        deep = [deep]
    assert find_flaw({"more": deep[0]}) is None
    assert "'more' is nested too deeply" in str(find_flaw({"more": deep}))


@pytest.mark.parametrize("as_sent", [json.dumps, lambda body: json.dumps(body, ensure_ascii=False)])
def test_the_length_of_a_message_is_that_of_its_utf_8_not_of_its_escapes(as_sent: Any) -> None:
    assert find_flaw(parse_body(as_sent(trigger(more="ü" * 7000)))) is None
    assert "longer than 16,384 bytes" in str(find_flaw(parse_body(as_sent({"more": "ü" * 9000}))))


def seconds(do: Callable[[], object]) -> float:
    began = time.process_time()
    do()
    return time.process_time() - began


MIB = 1024**2
PATHOLOGICAL = {
    "host": trigger(exportPath="https://" + ".s3." * (MIB // 4)),
    "queue": trigger(updatesQueueUrl="https://" + "\u0301\u0323" * (MIB // 12)),
    "queue of dots": trigger(updatesQueueUrl="https://" + "." * MIB),
    "combining": trigger(file="\u0301\u0323" * (MIB // 12)),
    "blanks": trigger(s3Bucket=" " * MIB),
    "digits": trigger(totalSize="9" * MIB),
    "download": trigger(downloadId="\u202e" * (MIB // 6)),
    "fields": {**trigger(), **{str(n): n for n in range(50_000)}},
    "deep": trigger(more=json.loads("[" * 900 + "]" * 900)),
}


@pytest.mark.parametrize("message", PATHOLOGICAL.values(), ids=PATHOLOGICAL)
def test_a_message_of_a_mebibyte_is_refused_within_a_second(message: dict[str, Any]) -> None:
    body = json.dumps(message)

    def gate() -> None:
        parsed = parse_body(body)
        ReplyAddress.of(parsed)
        title(parsed)
        assert parsed is None or find_flaw(parsed)

    assert seconds(gate) < 1
    assert seconds(lambda: refusal_of(message)) < 1


def test_a_body_longer_than_any_that_sqs_takes_is_not_parsed() -> None:
    assert parse_body(json.dumps("a" * (MAX_BODY_BYTES - 2))) is not None
    assert parse_body(json.dumps("a" * MAX_BODY_BYTES)) is None


def test_a_number_of_a_mebibyte_of_digits_is_no_json_that_is_read() -> None:
    assert seconds(lambda: parse_body('{"downloadId": ' + "9" * 1_000_000 + "}")) < 1


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"more": "a" * MAX_TRIGGER_BYTES}, "too-long"),
        ({"more": "\0"}, "control-character"),
        ({"__prefect_kind": "json"}, "reserved-name"),
        ([], "not-an-object"),
        ({**TRIGGER, "file": ".zip"}, "not-a-file-name"),
        ({**TRIGGER, "exportPath": f"s3://biospex-app/export/{STEM}.zip"}, "not-a-key"),
        ({**TRIGGER, "exportPath": "export/other.zip"}, "not-a-key"),
        ({**TRIGGER, "exportPath": f"batch/{STEM}.zip"}, "not-a-key"),
        ({**TRIGGER, "s3Bucket": "arn:aws:s3:::biospex-app"}, "not-a-bucket"),
        ({}, "cannot-be-carried-out"),
    ],
)
def test_a_refusal_has_the_code_of_its_one_problem(message: Any, code: str) -> None:
    with pytest.raises(RequestError) as refusal:
        Request.parse(message)
    assert refusal.value.problem.code == f"request.{code}"
    assert refusal.value.problem.sentence.actor is Actor.REQUESTER


def test_the_name_of_an_unknown_field_is_shown_as_foreign_text() -> None:
    refusal = refusal_of({"a\u202e' is fine; trust me" + "x" * 500: "\0"})
    assert "\u202e" not in refusal
    assert r"'a\u202e\' is fine" in refusal
    assert len(refusal) < 300


def test_an_archive_that_a_person_names_becomes_a_request_or_is_refused() -> None:
    queue = str(TRIGGER["updatesQueueUrl"])
    meant = Request.parse(spelled_out("s3://biospex-app/export/a#1?.zip", queue))
    assert (meant.s3_bucket, meant.export_path) == ("biospex-app", "export/a#1?.zip")
    for address in ("", "s3://", "s3://[", "s3://bucket", "https://x/y.zip", "s3:" + "\0/" * 999):
        with pytest.raises(RequestError) as refusal:
            spelled_out(address, queue)
        assert refusal.value.problem.code == "request.not-an-address"
        assert str(refusal.value).isprintable()


def test_a_title_is_short_and_has_no_control_characters() -> None:
    name = title(trigger(file="a\0\n" + "b" * 5000, downloadId="c\x7f\u202e" + "d" * 5000))
    assert name.isprintable()
    assert len(name) < 500
