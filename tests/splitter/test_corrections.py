"""A trigger that a person filled in: what is meant is taken, what may be meant is left alone."""

from typing import Any

import pytest

from splitter.corrections import corrected
from splitter.messages import ReplyAddress, Request
from tests.splitter.test_messages import STEM, TRIGGER, trigger

PATH = TRIGGER["exportPath"]
HOST = "s3.us-east-2.amazonaws.com"


@pytest.mark.parametrize(
    ("field", "written", "taken"),
    [
        ("exportPath", f"/{PATH}", PATH),
        ("exportPath", f"biospex-app/{PATH}", PATH),
        ("exportPath", f"/biospex-app/{PATH}", PATH),
        ("exportPath", f"export%2F{STEM}.zip", PATH),
        ("exportPath", f"s3://biospex-app/{PATH}", PATH),
        ("exportPath", f"https://biospex-app.{HOST}/{PATH}?X-Amz-Signature=1", PATH),
        ("exportPath", f"https://biospex-app.s3.amazonaws.com/{PATH}", PATH),
        ("exportPath", f"https://{HOST}/biospex-app/{PATH}?X-Amz-Expires=9", PATH),
        ("s3Bucket", "arn:aws:s3:::biospex-app", "biospex-app"),
        ("s3Bucket", " biospex-app ", "biospex-app"),
        ("updatesQueueUrl", f" {TRIGGER['updatesQueueUrl']} ", TRIGGER["updatesQueueUrl"]),
    ],
)
def test_what_a_person_wrote_of_a_field_is_taken_as_it_is_meant_with_a_warning(
    field: str, written: str, taken: str
) -> None:
    request = Request.parse(trigger(**{field: written}))
    assert request.model_dump(by_alias=True) == TRIGGER
    [said] = request.corrections
    assert f"'{field}' is " in said
    assert f"'{taken}' was taken" in said
    address = ReplyAddress.of(trigger(**{field: written}))
    assert address
    assert address.updates_queue_url == TRIGGER["updatesQueueUrl"]


@pytest.mark.parametrize(
    ("bucket", "path"),
    [("export", f"export/{STEM}.zip"), ("biospex-app", "export/100%25.zip"), ("abc", "abc/")],
)
def test_a_path_that_can_be_meant_as_it_is_written_is_left_alone(bucket: str, path: str) -> None:
    file = path.rpartition("/")[2] or f"{STEM}.zip"
    request = Request.parse(trigger(s3Bucket=bucket, exportPath=path, file=file))
    assert request.export_path == path
    assert request.corrections == []


@pytest.mark.parametrize("message", [None, 5, "text", ["s3Bucket"], {}, {"exportPath": 5}])
def test_what_is_no_trigger_is_left_for_the_check_to_refuse(message: Any) -> None:
    assert corrected(message) == (message, [])


def test_a_message_with_two_faults_gets_a_sentence_on_each_and_is_not_changed_itself() -> None:
    message = trigger(s3Bucket="arn:aws:s3:::biospex-app", exportPath=f"/biospex-app/{PATH}")
    meant, said = corrected(message)
    assert meant == TRIGGER
    assert [sentence.partition(" is ")[0] for sentence in said] == ["'s3Bucket'", "'exportPath'"]
    assert "a leading slash and written with the bucket in front" in said[1]
    assert message["s3Bucket"] == "arn:aws:s3:::biospex-app"


@pytest.mark.parametrize(
    "path",
    [
        f"s3://another-bucket/{PATH}",
        f"https://another-bucket.{HOST}/{PATH}",
        f"https://{HOST}/another-bucket/{PATH}",
        f"https://example.org/biospex-app/{PATH}",
        "https://[not an address/x.zip",
    ],
)
def test_an_address_of_something_else_is_not_taken_for_a_key_of_the_bucket(path: str) -> None:
    assert corrected(trigger(exportPath=path)) == (trigger(exportPath=path), [])
