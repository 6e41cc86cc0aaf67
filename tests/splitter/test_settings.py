import re
from pathlib import Path

import pytest

from splitter.archives.members import DEFAULT_LIMITS, Limits
from splitter.errors import SetupError
from splitter.messages import Request, RequestError
from splitter.settings import Allowed, Docs, Settings
from tests.helpers.messages import TRIGGER

ROOT = Path(__file__).parent.parent.parent
VARIABLES = [
    name.upper() for name in (*Settings.model_fields, *Docs.model_fields, *Allowed.model_fields)
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def test_nothing_needs_to_be_set() -> None:
    settings = Settings.load()
    assert settings.batch_size == 2000
    assert settings.efs_path == Path("/efs/batch")
    assert settings.max_tmp_size == 7516192768
    assert settings.split_strategy == "auto"
    assert settings.splice_min_size == 67108864
    assert settings.verify is False
    assert settings.trigger_queue_url is None
    assert settings.image_column == "imageName"
    assert settings.max_in_flight == 4
    assert settings.limits == DEFAULT_LIMITS


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("BATCH_SIZE", "500", 500),
        ("EFS_PATH", "/mnt/efs", Path("/mnt/efs")),
        ("SPLIT_STRATEGY", "splice", "splice"),
        ("VERIFY", "true", True),
        ("TRIGGER_QUEUE_URL", "https://sqs.example.org/1/q", "https://sqs.example.org/1/q"),
    ],
)
def test_a_variable_of_each_type_can_be_set(
    variable: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    assert getattr(Settings.load(), variable.lower()) == value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("BATCH_SIZE", "0"),
        ("BATCH_SIZE", "many"),
        ("BATCH_SIZE", "2.5"),
        ("BATCH_SIZE", ""),
        ("EFS_PATH", ""),
        ("EFS_PATH", "efs/batch"),
        ("MAX_TMP_SIZE", "7 GB"),
        ("SPLIT_STRATEGY", "Splice"),
        ("SPLIT_STRATEGY", ""),
        ("VERIFY", "maybe"),
        ("IMAGE_COLUMN", ""),
        ("MAX_IN_FLIGHT", "201"),
        ("VISIBILITY_TIMEOUT", "29"),
        ("VISIBILITY_TIMEOUT", "43201"),
        ("BUCKET_OWNER", "biospex"),
    ],
)
def test_a_bad_value_stops_the_start_with_its_variables_name(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(SetupError) as refusal:
        Settings.load()
    assert f"{variable}={text!r}" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


NUMBERS = [name for name, field in Settings.model_fields.items() if field.annotation is int]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["99999999999999999999999", "9" * 6000, "-1"])
def test_every_number_has_a_floor_and_a_ceiling(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name.upper(), text)
    with pytest.raises(SetupError, match=f"{name.upper()}='{text[:20]}") as refusal:
        Settings.load()
    assert len(str(refusal.value)) < 500


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_SIZE", "0")
    with pytest.raises(SetupError, match=r"BATCH_SIZE='0'.*MAX_IN_FLIGHT='x'"):
        Settings.load(max_in_flight="x")


def test_each_limit_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("EXPANSION", "MEMBERS", "NAME_BYTES", "IN_MEMORY", "CELLS", "COLUMNS")
    for number, name in enumerate(names, 1):
        monkeypatch.setenv(f"MAX_{name}", str(number))
    assert Settings.load().limits == Limits(1, 2, 3, 4, 5, 6)


OURS = "https://sqs.us-east-2.amazonaws.com/000000000000/"


def test_all_buckets_and_queues_are_allowed_unless_some_are() -> None:
    Allowed().check(Request.parse(TRIGGER))
    assert Allowed().reply_address(TRIGGER)


@pytest.mark.parametrize(
    ("patterns", "queue", "expected"),
    [
        (f"{OURS}*", f"{OURS}prod-batch-update", True),
        (f"{OURS}*-batch-update", f"{OURS}prod-batch-update", True),
        (f"{OURS}dev-*, {OURS}prod-*", f"{OURS}prod-batch-update", True),
        (f"{OURS}dev-*", f"{OURS}prod-batch-update", False),
        (f"{OURS}*", "https://sqs.us-east-2.amazonaws.com/111111111111/x", False),
        (f"{OURS}*", f"{OURS}../111111111111/x", False),
        (f"{OURS}*", "https://elsewhere.example/?" + OURS, False),
        (f"{OURS}*", OURS.replace("//", "//user@"), False),
        ("", f"{OURS}prod-batch-update", False),
        ("https://sqs.*.amazonaws.com/000000000000/*", f"{OURS}x", True),
        ("https://sqs.*.amazonaws.com/*/x", f"{OURS}x", True),
        ("https://sqs.*/000000000000/x", f"{OURS}x", False),
        ("https://*/x", f"{OURS}x", False),
        ("*", f"{OURS}x", False),
        (f"{OURS}*", f"{OURS}a/b", False),
        (f"{OURS}*", f"{OURS}a.fifo", True),
        (f"{OURS}[!a]*", f"{OURS}b/c", False),
        ("https://sqs.*.amazonaws.com/1/*", "https://sqs.evil/a.amazonaws.com/1/x", False),
    ],
)
def test_an_answer_goes_only_to_allowed_queues(
    patterns: str, queue: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLOWED_QUEUES", patterns)
    address = Allowed().reply_address({**TRIGGER, "updatesQueueUrl": queue})
    assert (address is not None) == expected


@pytest.mark.parametrize(
    ("variable", "field"), [("ALLOWED_BUCKETS", "s3Bucket"), ("ALLOWED_QUEUES", "updatesQueueUrl")]
)
def test_a_bucket_or_queue_that_is_not_allowed_is_reported(
    variable: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "biospex-dev,other")
    with pytest.raises(RequestError, match=rf"names '{TRIGGER[field]}' as its '{field}'"):
        Allowed().check(Request.parse(TRIGGER))


def rows_of(page: str) -> dict[str, tuple[str, ...]]:
    """A page's table of settings: variable, then default and description."""
    found = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*) \|$", (ROOT / page).read_text(), re.M)
    return {variable: (default, description) for variable, default, description in found}


def described() -> dict[str, tuple[str, ...]]:
    """The same of the classes."""
    fields = {**Settings.model_fields, **Docs.model_fields, **Allowed.model_fields}
    return {
        name.upper(): (shown(field.default), " ".join(str(field.description).split()))
        for name, field in fields.items()
    }


def shown(default: object) -> str:
    if default is None:
        return "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def test_the_page_of_settings_matches_the_classes() -> None:
    assert rows_of("docs/configuration.md") == described()
