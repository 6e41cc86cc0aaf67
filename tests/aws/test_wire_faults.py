"""Faults on the wire between boto3 and AWS, made by a proxy: what becomes of an export."""

import gzip
import random
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from prefect.client.schemas.objects import State
from prefect_aws import AwsCredentials
from prefect_aws.client_parameters import AwsClientParameters
from werkzeug.serving import make_server

from devtools.services import REGION
from flows import create_batches as flow
from flows import tasks as steps
from tests.helpers.archives import tar_of
from tests.helpers.biospex import Biospex
from tests.helpers.faulty_proxy import Fault, FaultyProxy, Operation, Rule, faulty_proxy

pytestmark = pytest.mark.usefixtures("prefect_api", "aws", "credentials", "no_delay")

MIB = 1024 * 1024
ROWS = 6
IMAGES = {f"{n:02}.jpg": random.Random(n).randbytes(MIB) for n in range(2 * ROWS)}
"""More than one request on the way down, and more than one part up for each of two batches."""

EXTRACT, SPLICE, SHUFFLED = LANES = ("extract.tar.gz", "splice.zip", "shuffled.zip")
"""An archive for each way through the flow; of the last, runs are too short for S3 to copy."""

EVERYWHERE: tuple[Operation, ...] = (
    "HeadObject",
    "GetObject",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
    "SendMessage",
)
MANY = 1000
BLOCK = f"biospex-{uuid4()}"


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultyProxy]:
    with faulty_proxy() as running:
        yield running


@pytest.fixture
def credentials(
    proxy: FaultyProxy, prefect_api: object, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A saved block, as an operator has it who leads all traffic to AWS through a proxy."""
    monkeypatch.setattr("blocks.saved.BLOCK_NAME", BLOCK)
    parameters = AwsClientParameters(
        verify=False,
        config={
            "proxies": {"http": proxy.url, "https": proxy.url},
            "retries": {"mode": "standard", "total_max_attempts": 3},
            "read_timeout": 3,
        },
    )
    AwsCredentials(region_name=REGION, aws_client_parameters=parameters).save(BLOCK)
    try:
        yield
    finally:
        AwsCredentials.delete(BLOCK)


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is tried twice, and a request three times, at once."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    for step in (
        steps.read_index,
        steps.download,
        steps.zip_and_upload,
        steps.splice,
        steps.notify,
    ):
        monkeypatch.setattr(step, "retries", 1)
        monkeypatch.setattr(step, "retry_delay_seconds", 0)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = sorted(IMAGES)
    manifest = "\n".join(["imageName", *names, ""])
    mixed = [name for pair in zip(names[:ROWS], names[ROWS:], strict=True) for name in pair]
    paths = {lane: tmp_path_factory.mktemp("archives") / lane for lane in LANES}
    tar = tar_of({**IMAGES, "manifest.csv": manifest.encode()})
    paths[EXTRACT].write_bytes(gzip.compress(tar, compresslevel=0))
    for lane, order in ((SPLICE, names), (SHUFFLED, mixed)):
        with zipfile.ZipFile(paths[lane], "w") as archive:
            for name in order:
                archive.writestr(name, IMAGES[name])
            archive.writestr("manifest.csv", manifest)
    return paths


@dataclass(frozen=True)
class Wire:
    """The proxy between the flow and AWS, and the results of the exports behind it."""

    proxy: FaultyProxy
    biospex: Biospex
    archives: dict[str, Path]
    workspace: Path

    def split(self, *lanes: str) -> dict[str, State[Any]]:
        """Split the archives, side by side; returns the state that each run ended in."""

        def one(request: Any) -> State[Any]:
            state: State[Any] = flow.create_batches(request, return_state=True)
            return state

        requests = [self.biospex.request(self.archives[lane], downloadId=lane) for lane in lanes]
        with ThreadPoolExecutor(len(lanes)) as pool:
            runs = [pool.submit(copy_context().run, one, request) for request in requests]
            return {lane: run.result() for lane, run in zip(lanes, runs, strict=True)}

    def callbacks(self) -> dict[str, list[Any]]:
        """Take the callbacks of each export: what is in them beside the constant fields."""
        taken: dict[str, list[Any]] = {}
        for message in self.biospex.callbacks():
            content = message["batchFiles"] if message["status"] == "success" else message["error"]
            taken.setdefault(message["downloadId"], []).append(content)
        return taken

    def left_over(self) -> list[str]:
        """Files and incomplete uploads, of which none should be there."""
        files = [path.name for path in self.workspace.iterdir()]
        return files + self.biospex.incomplete_uploads()

    def assert_whole(self, *lanes: str) -> None:
        """Every batch is in place, with its rows and images, and nothing else is."""
        files = [file for lane in lanes for file in batch_files(lane)]
        assert self.biospex.batches() == sorted(files)
        names = sorted(IMAGES)
        for file in files:
            content = self.biospex.batch(file)
            rows = names[:ROWS] if "part1" in file else names[ROWS:]
            assert content.pop("manifest.csv").decode() == "\n".join(["imageName", *rows, ""])
            assert content == {name: IMAGES[name] for name in rows}


@pytest.fixture
def wire(
    proxy: FaultyProxy,
    biospex: Biospex,
    archives: dict[str, Path],
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Wire:
    monkeypatch.setenv("BATCH_SIZE", str(ROWS))
    monkeypatch.setenv("SPLICE_MIN_SIZE", "0")
    monkeypatch.setattr("splitter.aws.s3.DOWNLOAD_PART_SIZE", 8 * MIB)
    return Wire(proxy, biospex, archives, workspace)


def batch_files(lane: str) -> list[str]:
    stem = lane.partition(".")[0]
    return [f"{stem}-part1.zip", f"{stem}-part2.zip"]


def once(fault: Fault, *operations: Operation, lanes: tuple[str, ...] = LANES) -> list[Rule]:
    """The first request of each operation goes wrong, for each of the exports."""
    return [
        Rule(operation, fault, about=lane.partition(".")[0])
        for operation in operations
        for lane in lanes
    ]


def everywhere(fault: Fault) -> list[Rule]:
    """The first request of every kind goes wrong."""
    return [*once(fault, *EVERYWHERE), *once(fault, "UploadPartCopy", lanes=(SPLICE,))]


PASSING = {
    # A request is sent three times at most.
    "throttled, then an error of the service": everywhere("throttled") + everywhere("broken"),
    "reset, and lost answers": [
        *once("reset", "CreateMultipartUpload", "SendMessage"),
        *once("reset", "CompleteMultipartUpload", lanes=(SHUFFLED,)),
        *once("reset", "HeadObject", "GetObject", "UploadPart"),
        *once("lost", "HeadObject", "GetObject", "UploadPart"),
        *once("reset", "UploadPartCopy", lanes=(SPLICE,)),
        *once("lost", "UploadPartCopy", lanes=(SPLICE,)),
        # Carried out; S3 then says of the upload that there is none.
        Rule("CompleteMultipartUpload", "lost", about="extract-part1"),
        Rule("CompleteMultipartUpload", "gone", about="extract-part1"),
        Rule("CompleteMultipartUpload", "lost", about="splice-part2"),
        Rule("CompleteMultipartUpload", "gone", about="splice-part2"),
    ],
    "one after the other": [
        *once("silent", "HeadObject"),
        *once("trickle", "GetObject", lanes=(SPLICE,)),
        Rule("GetObject", "answer cut", about="extract", skip=1, at=100_000),
        Rule("GetObject", "answer cut", about="shuffled", skip=3, at=100_000),
        *once("request cut", "UploadPart", lanes=(EXTRACT, SHUFFLED)),
        *once("answer cut", "UploadPartCopy", lanes=(SPLICE,)),
        *once("broken late", "CompleteMultipartUpload"),
        *once("silent", "SendMessage"),
    ],
}


@pytest.mark.parametrize("name", PASSING)
def test_a_temporary_fault_does_not_change_the_outcome(name: str, wire: Wire) -> None:
    rules = PASSING[name]
    wire.proxy.inject(*rules)
    states = wire.split(*LANES)
    assert sorted(wire.proxy.happened()) == sorted((rule.operation, rule.fault) for rule in rules)
    assert all(state.is_completed() for state in states.values())
    assert wire.callbacks() == {lane: [batch_files(lane)] for lane in LANES}
    wire.assert_whole(*LANES)
    assert wire.left_over() == []


LASTING = {
    EXTRACT: (
        Rule("GetObject", "throttled", about="extract", skip=1, times=MANY),
        "Amazon storage did not answer properly, even after several attempts (SlowDown from",
    ),
    SPLICE: (
        Rule("UploadPartCopy", "refused", about="splice", times=MANY),
        "Amazon storage refused a request of the batch service (AccessDenied from",
    ),
    SHUFFLED: (
        Rule("GetObject", "answer cut", about="shuffled", skip=3, times=MANY, at=100_000),
        "Amazon storage did not answer properly, even after several attempts (",
    ),
}
"""A fault of each kind; tests/splitter/test_errors.py has the sentences of all others."""


def test_a_permanent_fault_ends_in_a_sentence_and_leaves_nothing(wire: Wire) -> None:
    wire.proxy.inject(*(rule for rule, _ in LASTING.values()))
    states = wire.split(*LANES)
    assert {operation for operation, _ in wire.proxy.happened()} == {"GetObject", "UploadPartCopy"}
    for lane, (_, beginning) in LASTING.items():
        assert states[lane].is_failed()
        assert str(states[lane].message).startswith(beginning)
    assert wire.callbacks() == {}  # retry or callback are decided outside the run
    assert wire.biospex.batches() == []
    assert wire.left_over() == []


def test_a_failed_callback_leaves_the_batches_for_the_next_attempt(wire: Wire) -> None:
    wire.proxy.inject(Rule("SendMessage", "throttled", times=MANY))
    assert wire.split(SPLICE)[SPLICE].is_failed()
    assert wire.callbacks() == {}
    wire.assert_whole(SPLICE)

    wire.proxy.inject(Rule("PutObject", "refused"), Rule("CreateMultipartUpload", "refused"))
    assert wire.split(SPLICE)[SPLICE].is_completed()
    assert wire.callbacks() == {SPLICE: [batch_files(SPLICE)]}
    assert wire.proxy.happened() == []
    assert wire.left_over() == []


def test_a_request_whose_answer_is_lost_is_sent_twice(wire: Wire) -> None:
    wire.proxy.inject(Rule("CreateMultipartUpload", "lost"), Rule("SendMessage", "answer cut"))
    assert wire.split(SPLICE)[SPLICE].is_completed()
    assert wire.callbacks() == {SPLICE: [batch_files(SPLICE)] * 2}
    wire.assert_whole(SPLICE)
    # An upload whose id was lost can only be removed by the bucket's rule.
    assert len(wire.left_over()) == 1


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # the certificate is a new one
@pytest.mark.parametrize(
    "lane", [*(pytest.param(lane, marks=pytest.mark.soak) for lane in (EXTRACT, SPLICE)), SHUFFLED]
)
def test_tls_detects_a_wrong_bit_and_the_request_is_repeated(
    lane: str, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    with aws_over_tls() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        wire.proxy.inject(Rule("CONNECT", "flipped", at=60_000))  # no handshake is so long
        assert wire.split(lane)[lane].is_completed()
    assert wire.proxy.happened() == [("CONNECT", "flipped")]
    assert wire.callbacks() == {lane: [batch_files(lane)]}
    wire.assert_whole(lane)


@contextmanager
def aws_over_tls() -> Iterator[str]:
    """Another door to the emulated AWS of this process, with a certificate of its own making."""
    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True, ssl_context="adhoc")
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("lane", "skip", "at"),
    [
        (EXTRACT, 1, 500_000),
        (SHUFFLED, 0, 1_500_000),  # only what is read for several images is so long
    ],
)
def test_without_tls_the_checksum_of_an_image_detects_a_wrong_bit(
    lane: str, skip: int, at: int, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERIFY", "true")  # the splice lane reads no image otherwise
    # However often it is read: the batch whose image it is may not have waited the first time.
    wire.proxy.inject(Rule("GetObject", "flipped", times=MANY, skip=skip, at=at))
    assert wire.split(lane)[lane].is_failed()
    [[error]] = wire.callbacks().values()
    assert error.startswith("The archive is damaged")
    assert len(wire.biospex.batches()) <= 1  # the other batch, which is whole
    assert wire.left_over() == []
