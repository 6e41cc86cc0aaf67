"""nginx before Prefect's API, set up as docs/where-prefect-runs.md says."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

from devtools.services import child, free_port

NGINX = which("nginx", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
PAGE = Path(__file__).parent.parent / "docs" / "where-prefect-runs.md"


def documented() -> tuple[str, str]:
    """The map and the location of the docs."""
    found = re.search(r"```nginx\n(map .*?\})\n.*?(location / \{.*?\})", PAGE.read_text(), re.S)
    assert found
    return found[1], found[2]


@contextmanager
def nginx(
    api: str, home: Path, setup: tuple[str, str] | None = None, port: int | None = None
) -> Iterator[str]:
    """nginx before Prefect's API; yields the URL of the API behind it.

    Args:
        api: the API's own URL.
        home: the directory of its files.
        setup: a map and a location; by default those of the docs.
        port: its TCP port; by default a free one.
    """
    mapping, location = setup or documented()
    port = port or free_port()
    server = api.removesuffix("/api").removeprefix("http://")
    paths = "".join(
        f"{name}_temp_path {home}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (home / "nginx.conf").write_text(
        f"pid {home}/pid; error_log {home}/error.log; daemon off; user root; events {{}}\n"
        f"http {{ access_log off; {paths} {mapping}\n"
        f"server {{ listen 127.0.0.1:{port}; "
        f"{location.replace('127.0.0.1:4200', server)} }} }}\n"
    )
    command = [NGINX or "nginx", "-c", str(home / "nginx.conf")]
    with (home / "nginx.log").open("ab") as log, child(command, {}, log):
        yield f"http://127.0.0.1:{port}/api"
