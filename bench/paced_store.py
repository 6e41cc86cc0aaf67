"""A stand-in for S3 that takes as long as S3 and moves few bytes.

A request waits for its first byte, then for its bytes at the rate of one connection; any number of
requests wait side by side. Archives are files, which may be sparse. Copies are only recorded, and
of received bytes only the number is kept. S3's limits on parts apply.
"""

import asyncio
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from splitter.aws.s3 import MAX_PARTS, MIB

MIN_PART_SIZE = 5 * MIB  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
FIRST_BYTE = 0.03
RATE = 85e6
"""AWS's guideline for one connection, bytes a second, as is the first byte's time:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-guidelines.html"""

PIECE = 256 * 1024
NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
METADATA = "x-amz-meta-"


@dataclass
class Stored:
    """An object: the bytes of a file, or only their number."""

    size: int
    path: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def etag(self) -> str:
        return f'"{self.size:032x}"'


@dataclass
class Upload:
    """A multipart upload and the sizes of its parts by number."""

    key: str
    metadata: Mapping[str, str]
    parts: dict[int, int] = field(default_factory=dict)


@dataclass
class Traffic:
    """The requests that the store received.

    Attributes:
        requests: by method; COPY is UploadPartCopy, LIST is ListMultipartUploads.
        received, sent, copied: bytes, as the store sees them.
        most: requests under way at the same time.
        most_copies: copies among them.
        began, ended: of the first request and of the last, on the monotonic clock.
        throttled: requests answered by SlowDown.
    """

    requests: Counter[str] = field(default_factory=Counter)
    received: int = 0
    sent: int = 0
    copied: int = 0
    most: int = 0
    most_copies: int = 0
    began: float | None = None
    ended: float = 0.0
    throttled: int = 0

    @property
    def seconds(self) -> float:
        return self.ended - self.began if self.began is not None else 0.0


@dataclass
class Request:
    method: str
    key: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]

    @property
    def kind(self) -> str:
        if "x-amz-copy-source" in self.headers:
            return "COPY"
        if self.method == "GET" and "uploads" in self.query:
            return "LIST"
        return self.method

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", 0))


@dataclass
class Answer:
    """The answer to a request; ``moved``: bytes whose transfer time it takes, besides the body."""

    status: HTTPStatus = HTTPStatus.OK
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    stretch: tuple[Path, int, int] | None = None
    moved: int = 0


def error(status: HTTPStatus, code: str) -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())


NO_KEY = error(HTTPStatus.NOT_FOUND, "NoSuchKey")
NO_UPLOAD = error(HTTPStatus.NOT_FOUND, "NoSuchUpload")
CHANGED = error(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed")
NOT_IMPLEMENTED = error(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented")
SLOW_DOWN = error(HTTPStatus.SERVICE_UNAVAILABLE, "SlowDown")


class PacedStore:
    """One bucket of any name."""

    def __init__(
        self, first_byte: float = FIRST_BYTE, rate: float = RATE, most_copies: int = 10_000
    ) -> None:
        """
        Args:
            first_byte: seconds that each request waits.
            rate: bytes a second of one connection, or of one copy.
            most_copies: under way at the same time; further copies are answered by SlowDown.
        """
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.traffic = Traffic()
        self._first_byte = first_byte
        self._rate = rate
        self._most_copies = most_copies
        self._under_way: Counter[str] = Counter()
        self._numbers = itertools.count(1)

    def add(self, key: str, path: Path) -> None:
        """Store a file under a key; its bytes are read at each request."""
        self.objects[key] = Stored(path.stat().st_size, path)

    @contextmanager
    def served(self) -> Iterator[str]:
        """Serve within a ``with`` block; yields the endpoint's URL."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self._answer(read_head(await reader.readuntil(b"\r\n\r\n")), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()

    async def _answer(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        began = time.monotonic()
        kind, traffic = request.kind, self.traffic
        traffic.began = traffic.began or began
        traffic.requests[kind] += 1
        self._under_way[kind] += 1
        traffic.most = max(traffic.most, self._under_way.total())
        traffic.most_copies = max(traffic.most_copies, self._under_way["COPY"])
        try:
            if request.headers.get("expect") == "100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await self._received(request, reader)
            if kind == "COPY" and self._under_way["COPY"] > self._most_copies:
                traffic.throttled += 1
                answer = SLOW_DOWN
            else:
                answer = self._carry_out(request, body)
            moved = max(answer.moved, request.length)
            await sleep_until(began + self._first_byte + moved / self._rate)
            await self._send(request, answer, writer)
        finally:
            self._under_way[kind] -= 1
            traffic.ended = time.monotonic()

    async def _received(self, request: Request, reader: asyncio.StreamReader) -> bytes:
        """The body of a request; the bytes of an object are counted and dropped."""
        self.traffic.received += request.length
        if request.method != "PUT":
            return await reader.readexactly(request.length)
        left = request.length
        while left:
            piece = await reader.read(min(left, PIECE))
            if not piece:
                raise ConnectionResetError
            left -= len(piece)
        return b""

    async def _send(self, request: Request, answer: Answer, writer: asyncio.StreamWriter) -> None:
        length = answer.stretch[2] if answer.stretch else len(answer.body)
        headers = {"Content-Length": str(length), **answer.headers}
        lines = [f"HTTP/1.1 {answer.status.value} {answer.status.phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        if request.method == "HEAD":
            return
        self.traffic.sent += length
        writer.write(answer.body)
        if answer.stretch:
            path, start, length = answer.stretch
            began = time.monotonic()
            with path.open("rb", buffering=0) as file:
                for done in range(0, length, PIECE):
                    count = min(PIECE, length - done)
                    writer.write(os.pread(file.fileno(), count, start + done))
                    await writer.drain()
                    await sleep_until(began + (done + count) / self._rate)
        await writer.drain()

    def _carry_out(self, request: Request, body: bytes) -> Answer:
        match request.kind:
            case "HEAD" | "GET":
                return self._read(request)
            case "LIST":
                return self._list_uploads(request)
            case "COPY":
                return self._copy(request)
            case "PUT" if "uploadId" in request.query:
                return self._note_part(request, request.length, 0)
            case "PUT":
                self.objects[request.key] = Stored(request.length, None, metadata_of(request))
                return Answer(headers={"ETag": self.objects[request.key].etag})
            case "POST" if "uploads" in request.query:
                return self._begin(request)
            case "POST" if "uploadId" in request.query:
                return self._complete(request, body)
            case "DELETE":
                for upload_id in request.query.get("uploadId", []):
                    self.uploads.pop(upload_id, None)
                if "uploadId" not in request.query:
                    self.objects.pop(request.key, None)
                return Answer(HTTPStatus.NO_CONTENT)
        return NOT_IMPLEMENTED

    def _read(self, request: Request) -> Answer:
        found = self.objects.get(request.key)
        if not found:
            return NO_KEY
        if request.headers.get("if-match", found.etag) != found.etag:
            return CHANGED
        headers = {"ETag": found.etag}
        headers |= {METADATA + name: value for name, value in found.metadata.items()}
        if request.method == "HEAD":
            return Answer(headers={**headers, "Content-Length": str(found.size)})
        if not found.path:  # only its size is known
            return NOT_IMPLEMENTED
        start, end = span(request.headers["range"])
        length = min(end, found.size) - start
        return Answer(
            HTTPStatus.PARTIAL_CONTENT, headers=headers, stretch=(found.path, start, length)
        )

    def _copy(self, request: Request) -> Answer:
        source = self.objects.get(key_of(request.headers["x-amz-copy-source"]))
        if not source:
            return NO_KEY
        if request.headers.get("x-amz-copy-source-if-match", source.etag) != source.etag:
            return CHANGED
        start, end = span(request.headers["x-amz-copy-source-range"])
        if end > source.size:
            return error(HTTPStatus.BAD_REQUEST, "InvalidRange")
        self.traffic.copied += end - start
        return self._note_part(request, end - start, end - start)

    def _note_part(self, request: Request, size: int, moved: int) -> Answer:
        upload = self.uploads.get(request.query["uploadId"][0])
        if not upload:
            return NO_UPLOAD
        number = int(request.query["partNumber"][0])
        if not 1 <= number <= MAX_PARTS:
            return error(HTTPStatus.BAD_REQUEST, "InvalidArgument")
        upload.parts[number] = size
        etag = f'"{size:032x}"'
        body = f"<CopyPartResult><ETag>{escape(etag)}</ETag></CopyPartResult>".encode()
        return Answer(body=body, headers={"ETag": etag}, moved=moved)

    def _begin(self, request: Request) -> Answer:
        upload_id = str(next(self._numbers))
        self.uploads[upload_id] = Upload(request.key, metadata_of(request))
        return Answer(
            body=f"<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId>"
            "</InitiateMultipartUploadResult>".encode()
        )

    def _complete(self, request: Request, body: bytes) -> Answer:
        upload_id = request.query["uploadId"][0]
        upload = self.uploads.get(upload_id)
        if not upload:
            return NO_UPLOAD
        listed = ElementTree.fromstring(body).iterfind(f"{NAMESPACE}Part/{NAMESPACE}PartNumber")
        numbers = [int(number.text or 0) for number in listed]
        if numbers != sorted(upload.parts):
            return error(HTTPStatus.BAD_REQUEST, "InvalidPart")
        sizes = [upload.parts[number] for number in numbers]
        if any(size < MIN_PART_SIZE for size in sizes[:-1]):
            return error(HTTPStatus.BAD_REQUEST, "EntityTooSmall")
        del self.uploads[upload_id]
        self.objects[upload.key] = Stored(sum(sizes), None, upload.metadata)
        return Answer(
            body=b"<CompleteMultipartUploadResult><ETag>any</ETag></CompleteMultipartUploadResult>"
        )

    def _list_uploads(self, request: Request) -> Answer:
        prefix = request.query.get("prefix", [""])[0]
        entries = "".join(
            f"<Upload><Key>{escape(upload.key)}</Key><UploadId>{number}</UploadId></Upload>"
            for number, upload in self.uploads.items()
            if upload.key.startswith(prefix)
        )
        return Answer(
            body=f"<ListMultipartUploadsResult>{entries}</ListMultipartUploadsResult>".encode()
        )


async def sleep_until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


def read_head(head: bytes) -> Request:
    first, *lines = head.decode().split("\r\n")
    method, target, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    query = parse_qs(urlsplit(target).query, keep_blank_values=True)
    return Request(method, key_of(urlsplit(target).path), query, headers)


def key_of(path: str) -> str:
    """The key in ``/bucket/key``."""
    return unquote(path).removeprefix("/").partition("/")[2]


def span(header: str) -> tuple[int, int]:
    """The bytes of ``bytes=first-last``: from one up to, not including, the other."""
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1


def metadata_of(request: Request) -> dict[str, str]:
    return {
        name.removeprefix(METADATA): value
        for name, value in request.headers.items()
        if name.startswith(METADATA)
    }
