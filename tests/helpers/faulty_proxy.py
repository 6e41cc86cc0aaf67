"""A forward proxy between boto3 and AWS that breaks chosen requests: proxy.py with a plugin.

``faulty_proxy()`` starts it as a process. Tests set its faults by HTTP requests to the host
``faults``, which exists only in the proxy.
"""

import json
import socket
import struct
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from proxy.http import HttpProtocolHandler
from proxy.http.parser import HttpParser
from proxy.http.proxy import HttpProxyBasePlugin

from devtools.services import child

Operation = Literal[
    "HeadObject",
    "GetObject",
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
    "UploadPartCopy",
    "CompleteMultipartUpload",
    "AbortMultipartUpload",
    "DeleteObject",
    "SendMessage",
    "RunTask",
    "CONNECT",
]

Fault = Literal[
    "throttled",  # SlowDown, or SQS's RequestThrottled
    "broken",  # InternalError, status 500
    "broken late",  # InternalError after status 200, as S3 answers copies and completions
    "refused",  # AccessDenied
    "gone",  # NoSuchUpload
    "no capacity",  # ECS's answer to RunTask when Fargate has no capacity
    "reset",  # the connection is reset, the request goes nowhere
    "silent",  # no answer ever, the request goes nowhere
    "lost",  # the request is carried out, the connection closes without an answer
    "request cut",  # the connection is reset within the request's body
    "answer cut",  # the connection closes within the answer's body
    "trickle",  # the answer's first bytes come one by one
    "flipped",  # one bit of the answer's body is wrong
]

ANSWERS = {
    "throttled": (503, "Slow Down", "SlowDown", "RequestThrottled"),
    "broken": (500, "Internal Server Error", "InternalError", "InternalFailure"),
    "broken late": (200, "OK", "InternalError", "InternalFailure"),
    "refused": (403, "Forbidden", "AccessDenied", "AccessDenied"),
    "gone": (404, "Not Found", "NoSuchUpload", ""),
}
"""Status, reason and the codes of S3 and of SQS."""

NO_CAPACITY = "Capacity is unavailable at this time. Please try again later."

CUT_AFTER = 100_000
"""Bytes of a request's body."""

TRICKLE = 10
"""Bytes that arrive one by one, every tenth of a second."""


@dataclass
class Rule:
    """The next ``times`` requests of an operation fail.

    Attributes:
        about: a text in the request's path or body.
        skip: the number of requests that succeed first.
        at: the byte of the answer's body, or of the tunnel, at which it is flipped or cut. Shorter
            answers do not count.
    """

    operation: Operation
    fault: Fault
    about: str = ""
    times: int = 1
    skip: int = 0
    at: int = 0

    def fits(self, request: HttpParser) -> bool:
        about = self.about.encode()
        return (
            self.times > 0
            and self.operation == operation_of(request)
            and (about in (request.path or b"") or about in (request.body or b"")[:CUT_AFTER])
        )

    def apply(self) -> None:
        self.times -= 1
        HAPPENED.append((self.operation, self.fault))


RULES: list[Rule] = []
HAPPENED: list[tuple[str, str]] = []


def operation_of(request: HttpParser) -> str:
    """Return the operation of a request."""
    method = (request.method or b"").decode()
    query = parse_qs(urlsplit(request.path or b"").query.decode(), keep_blank_values=True)
    if request.has_header(b"x-amz-target"):
        return request.header(b"x-amz-target").decode().rpartition(".")[2]
    match method:
        case "POST":
            return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
        case "PUT" if "partNumber" in query:
            copied = request.has_header(b"x-amz-copy-source")
            return "UploadPartCopy" if copied else "UploadPart"
        case "DELETE":
            return "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
        case "CONNECT":
            return method
    return f"{method.capitalize()}Object"


def rule_for(request: HttpParser) -> Rule | None:
    """Return the first rule that fits a request, unless it skips this one."""
    for rule in RULES:
        if rule.fits(request):
            if not rule.skip:
                return rule
            rule.skip -= 1
            return None
    return None


class Connection(HttpProtocolHandler):
    """Resets a connection while the body of a request is still on its way."""

    def handle_data(self, data: memoryview) -> bool | None:
        ended: bool | None = super().handle_data(data)
        request = self.request
        if request.is_complete:  # the connection's first; the plugin has the next one
            request = getattr(self.plugin, "pipeline_request", None) or request
        if not request.is_complete and len(request.body or b"") >= CUT_AFTER:
            for rule in RULES:
                if rule.fault == "request cut" and rule.fits(request):
                    rule.apply()
                    reset(self.work.connection)
                    return True
        return ended


class Faults(HttpProxyBasePlugin):
    """Answers in place of AWS, or damages its answers. One instance for each connection."""

    rule: Rule | None = None
    head: bytes | None = None
    """The answer's headers so far; None in a tunnel."""
    body: int = 0
    """Bytes of the answer's body, or of the tunnel, so far."""

    def before_upstream_connection(self, request: HttpParser) -> HttpParser | None:
        return None if request.host == b"faults" else request

    def handle_client_request(self, request: HttpParser) -> HttpParser | None:
        if request.host == b"faults":
            self.configure(request)
            return None
        self.rule = rule_for(request)
        self.head, self.body = None if request.method == b"CONNECT" else b"", 0
        match self.rule:
            case Rule(fault="reset") as rule:
                rule.apply()
                reset(self.client.connection)
                return None
            case Rule(fault="silent") as rule:
                rule.apply()
                return None
            case Rule(fault="no capacity") as rule:
                rule.apply()
                failures = [{"arn": "arn:aws:ecs:::cluster", "reason": NO_CAPACITY}]
                self.answer(200, "OK", json.dumps({"tasks": [], "failures": failures}))
                return None
            case Rule(fault=fault) as rule if fault in ANSWERS:
                rule.apply()
                status, reason, s3_code, sqs_code = ANSWERS[fault]
                if rule.operation == "SendMessage":
                    body = json.dumps({"__type": f"com.amazonaws.sqs#{sqs_code}"})
                else:
                    body = f"<Error><Code>{s3_code}</Code><Message>a fault</Message></Error>"
                self.answer(status, reason, "" if rule.operation == "HeadObject" else body)
                return None
        return request

    def configure(self, request: HttpParser) -> None:
        if request.method == b"PUT":
            RULES[:] = [Rule(**rule) for rule in json.loads(request.body or b"[]")]
            HAPPENED.clear()
        self.answer(200, "OK", json.dumps(HAPPENED))

    def answer(self, status: int, reason: str, body: str) -> None:
        self.send(
            f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(body)}\r\n"
            f"Content-Type: text/plain\r\nConnection: close\r\n\r\n{body}".encode()
        )
        hang_up(self.client.connection)

    def send(self, data: bytes) -> None:
        self.client.connection.setblocking(True)
        while self.client.has_buffer():
            self.client.flush()
        self.client.connection.sendall(data)

    def handle_upstream_chunk(self, chunk: memoryview) -> memoryview | None:
        rule = self.rule
        if rule is None or not rule.times:
            return chunk
        data = bytes(chunk)
        if rule.fault == "lost":
            rule.apply()
            hang_up(self.client.connection)
            return None
        start, self.body = self.body, self.body + len(data)
        if self.head is not None and b"\r\n\r\n" not in self.head:
            self.head += data
            headers, end, first = self.head.partition(b"\r\n\r\n")
            self.head = headers + end
            self.body = len(first)
            if not end or not first:
                return chunk
        body = data[len(data) - (self.body - start) :]
        before = data[: len(data) - len(body)]
        match rule.fault:
            case "answer cut" if self.body > rule.at:
                rule.apply()
                self.send(before + body[: rule.at - start])
                hang_up(self.client.connection)
                return None
            case "trickle":
                rule.apply()
                self.rule = None
                self.send(before)
                for position in range(TRICKLE):
                    self.send(body[position : position + 1])
                    time.sleep(0.1)
                return memoryview(body[TRICKLE:]) if body[TRICKLE:] else None
            case "flipped" if start <= rule.at < self.body:
                rule.apply()
                spoiled = bytearray(body)
                spoiled[rule.at - start] ^= 1
                return memoryview(before + spoiled)
        return chunk


def hang_up(connection: socket.socket) -> None:
    """Close a connection; data already sent arrives."""
    connection.shutdown(socket.SHUT_RDWR)


def reset(connection: socket.socket) -> None:
    """Reset a connection: the other side gets ECONNRESET."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RD)


@dataclass(frozen=True)
class FaultyProxy:
    """The running proxy."""

    url: str

    def inject(self, *rules: Rule) -> None:
        """Replace the rules; the first that fits a request applies."""
        self._ask("PUT", json.dumps([asdict(rule) for rule in rules]).encode())

    def happened(self) -> list[tuple[str, str]]:
        """Return the operations that failed since then, each with its fault."""
        return [(operation, fault) for operation, fault in self._ask("GET")]

    def _ask(self, method: str, body: bytes | None = None) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": self.url}))
        request = urllib.request.Request("http://faults/", body, method=method)
        with opener.open(request, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def faulty_proxy() -> Iterator[FaultyProxy]:
    """Run the proxy as a process until the block ends."""
    with TemporaryDirectory(prefix="proxy-") as home:
        port_file = Path(home, "port")
        command = [sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", "--port", "0"]
        command += ["--port-file", str(port_file), "--num-acceptors", "1", "--threaded"]
        command += ["--work-klass", f"{__name__}.Connection", "--plugins", f"{__name__}.Faults"]
        command += ["--log-level", "ERROR", "--data-dir", home]
        with Path(home, "log").open("wb") as log, child(command, {"HOME": home}, log) as process:
            deadline = time.monotonic() + 60
            while not (port_file.exists() and port_file.read_text().strip()):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(Path(home, "log").read_text())
                time.sleep(0.05)
            proxy = FaultyProxy(f"http://127.0.0.1:{port_file.read_text().split()[0]}")
            proxy.inject()
            yield proxy
