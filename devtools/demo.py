"""Splits archives on one machine, with an embedded AWS and an embedded Prefect server.

``make demo`` uploads the archives to S3, sends BIOSPEX's triggers, runs ``flows.serve``, prints
each step and downloads the batch ZIPs.
"""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import gettempdir

from devtools.services import DemoError
from devtools.story import tell
from splitter.archives import identify
from splitter.archives.zip_index import file_reader
from splitter.errors import ExportError, SetupError

STOPPED = 130  # exit status after Ctrl-C: https://tldp.org/LDP/abs/html/exitcodes.html


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status: 0 if every archive was split."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        options = _options(arguments)
        for archive in options.archives:
            _check_format(archive)
        if options.batch_size is not None:
            os.environ["BATCH_SIZE"] = options.batch_size
        return tell(options.archives, options.out, options.keep)
    except (DemoError, ExportError, SetupError) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # A write's error names no file.
        full = error.filename or f"{gettempdir()} or {options.out}"
        print(f"{full} is full.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED


def _interrupt(number: int, frame: object) -> None:
    """Stop the demo. A second Ctrl-C does not interrupt the clean-up."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    os.write(2, b"\nstopping ...\n")
    raise KeyboardInterrupt


def _check_format(archive: Path) -> None:
    """Raise ``ExportError`` for a file that is no archive, ``DemoError`` if it cannot be read."""
    try:
        with archive.open("rb") as file:
            identify(file_reader(file), archive.stat().st_size)
    except OSError as error:
        raise DemoError(f"{archive} cannot be read ({error.strerror}).") from error


def _archive(text: str) -> Path:
    path = Path(os.path.expanduser(text))  # noqa: PTH111  # leaves the ~ of an unknown user
    if path.is_dir():
        raise DemoError(f"{path} is a folder; name the archive itself (.zip, .tar.gz or .tar).")
    if not path.is_file():
        raise DemoError(f"There is no archive {path}.")
    return path


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    description = str(__doc__).partition("\n")[0]
    parser = argparse.ArgumentParser("python -m devtools.demo", description=description)
    parser.add_argument("archives", nargs="*", type=_archive, metavar="ARCHIVE")
    parser.add_argument("--batch-size", help="rows in a batch (2000, or 10 for the examples)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="output folder (./out)")
    parser.add_argument("--keep", action="store_true", help="keep the UI running until Ctrl-C")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
