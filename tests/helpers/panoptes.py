"""A server that answers Zooniverse's client as Panoptes does and keeps the uploads.

It has the paths that ``panoptes subject-set upload-subjects`` requests, as in
https://github.com/zooniverse/Panoptes, ``config/routes.rb``.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

CLIENT = Path(__file__).parents[2] / ".venv/zooniverse/bin/panoptes"

SUBJECT_SET = "7"


class Panoptes(ThreadingHTTPServer):
    """Subjects by id: posted fields, uploaded files, and the ids linked to the set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = Lock()
        self.subjects: dict[str, dict[str, Any]] = {}
        self.files: dict[str, list[bytes]] = {}
        self.linked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def uploaded(self) -> list[tuple[dict[str, str], list[bytes]]]:
        """Return the metadata and files of each subject of the set."""
        return [(self.subjects[id]["metadata"], self.files[id]) for id in self.linked]


class _Handler(BaseHTTPRequestHandler):
    server: Panoptes
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", 'W/"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        self._body()
        subject_set = {
            "id": SUBJECT_SET,
            "display_name": "Herbarium",
            "metadata": {},
            "links": {"project": "1", "workflows": []},
        }
        project = {"id": "1", "display_name": "Project", "configuration": {}, "links": {}}
        self._answer({"subject_sets": [subject_set], "projects": [project]})

    def do_POST(self) -> None:
        asked = json.loads(self._body() or b"{}")
        server = self.server
        with server.lock:
            if self.path == f"/api/subject_sets/{SUBJECT_SET}/links/subjects":
                server.linked += asked["subjects"]
                self._answer({"subject_sets": [{"id": SUBJECT_SET, "links": {}}]})
                return
            subject = asked["subjects"]
            id = str(len(server.subjects) + 1)
            server.subjects[id] = subject
            server.files[id] = [b""] * len(subject["locations"])
        locations = [
            {media_type: f"{server.url}/upload/{id}/{number}"}
            for number, media_type in enumerate(subject["locations"])
        ]
        made = {**subject, "id": id, "locations": locations, "links": {"project": "1"}}
        self._answer({"subjects": [made]}, 201)

    def do_PUT(self) -> None:
        _, _, id, number = self.path.split("/")
        self.server.files[id][int(number)] = self._body()
        self._answer({})


@contextmanager
def panoptes() -> Iterator[Panoptes]:
    """Run a server until the block ends."""
    with Panoptes() as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def upload(batch: Path, server: Panoptes) -> str:
    """Upload an unpacked batch with Zooniverse's client; return its output."""
    done = subprocess.run(
        [CLIENT, "-e", server.url, "subject-set", "upload-subjects", SUBJECT_SET, "manifest.csv"],
        cwd=batch,
        env={**os.environ, "HOME": str(batch.parent), "LC_ALL": "C.UTF-8"},
        input="n\n",
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr
