"""Runs nginx and Caddy in front of Prefect's API, configured as in docs/where-prefect-runs.md."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

from devtools.services import child, free_port, wait_until_healthy

NGINX = which("nginx") or which("nginx", path="/usr/sbin")
CADDY = which("caddy")
SERVER = "127.0.0.1:4200"
"""The address of Prefect's server in the docs."""

PAGE = Path(__file__).parent.parent / "docs" / "where-prefect-runs.md"


def documented(pattern: str) -> re.Match[str]:
    found = re.search(pattern, PAGE.read_text(), re.S)
    assert found
    return found


@contextmanager
def nginx(
    api: str, home: Path, setup: tuple[str, str] | None = None, port: int | None = None
) -> Iterator[str]:
    """Run nginx in front of Prefect's API; yields the API's URL through nginx.

    Args:
        api: the API's own URL.
        home: a directory for nginx's files.
        setup: nginx's map and location; those in the docs by default.
        port: a free one by default.
    """
    default = r"```nginx\n(map .*?\})\n.*?(location / \{.*?\})"
    mapping, location = setup or documented(default).groups()
    port = port or free_port()
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{name}_temp_path {home}/{name};" for name in names)
    (home / "nginx.conf").write_text(
        f"pid {home}/pid; error_log {home}/error.log; daemon off; user root; events {{}}\n"
        f"http {{ access_log off; {paths} {mapping}\n"
        f"server {{ listen 127.0.0.1:{port}; "
        f"{location.replace(SERVER, _address(api))} }} }}\n"
    )
    command = [NGINX or "nginx", "-c", str(home / "nginx.conf")]
    with _running(command, f"http://127.0.0.1:{port}/api", home) as url:
        yield url


@contextmanager
def caddy(api: str, home: Path) -> Iterator[str]:
    """Run Caddy without TLS in front of Prefect's API; yields the API's URL through Caddy."""
    url = f"http://127.0.0.1:{free_port()}"
    lines = documented(r"```\n(prefect\.example\.org\nreverse_proxy .*?)```")[1]
    lines = lines.replace("prefect.example.org", url).replace(SERVER, _address(api))
    (home / "Caddyfile").write_text(f"{{\nadmin off\n}}\n{lines}")
    command = [CADDY or "caddy", "run", "--config", str(home / "Caddyfile")]
    with _running(command, f"{url}/api", home) as url:
        yield url


@contextmanager
def _running(command: list[str], api: str, home: Path) -> Iterator[str]:
    log = home / "proxy.log"
    environment = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(home))
    with log.open("ab") as output, child(command, environment, output) as proxy:
        wait_until_healthy(api, proxy, log)
        yield api


def _address(api: str) -> str:
    return api.removesuffix("/api").removeprefix("http://")
