"""A reverse proxy before Prefect's API that answers some requests with an error."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

RESET = 0
"""In place of a status: the connection closes without an answer."""


class BrokenPrefect:
    """The proxy, as a test sees it.

    Attributes:
        url: of the API behind it.
        fault: the status with which a request, given by method and path, is answered; None passes
            it on.
        broken: how many requests were answered with an error.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.broken = 0


def creations(status: int) -> Callable[[str, str], int | None]:
    """A fault of the creation of runs alone."""

    def fault(method: str, path: str) -> int | None:
        return status if method == "POST" and path.endswith("/create_flow_run") else None

    return fault


def some(status: int, share: float) -> Callable[[str, str], int | None]:
    """A fault of a share of all requests."""
    dice = random.Random(1)

    def fault(method: str, path: str) -> int | None:
        return status if dice.random() < share else None

    return fault


def everything(status: int) -> Callable[[str, str], int | None]:
    return lambda method, path: status


@contextmanager
def broken_prefect(api: str) -> Iterator[BrokenPrefect]:
    """The proxy before an API, until the end of the block. It passes no WebSocket on."""
    behind = urlsplit(api)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status = proxy.fault(self.command, self.path)
            if status is not None:
                proxy.broken += 1
                if status == RESET:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")
                return
            if self.headers.get("Upgrade"):
                self.send_error(400)
                return
            connection = HTTPConnection(behind.hostname or "", behind.port, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in (
                    "transfer-encoding",
                    "content-length",
                    "connection",
                    "date",
                ):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        def log_message(self, format: str, *args: object) -> None:
            pass

    for method in ("GET", "POST", "PATCH", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.handle_any)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        proxy = BrokenPrefect(f"http://127.0.0.1:{server.server_port}{behind.path}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield proxy
        server.shutdown()
