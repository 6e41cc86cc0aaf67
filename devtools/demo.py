"""Everything on one machine: embedded AWS, embedded Prefect, both flows, your archives.

``python -m devtools.demo [ARCHIVE …]`` puts the archives into S3, sends the messages that BIOSPEX
would send, lets ``flows.serve`` do its work, tells what happens, and fetches the batch ZIPs.
"""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

STOPPED = 130  # https://tldp.org/LDP/abs/html/exitcodes.html: ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit status is 0 if every archive was split."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        options = _options(arguments)
        # What takes seconds to import comes after Ctrl-C is dealt with.
        from devtools.story import tell
        from splitter.errors import SetupError

        try:
            if options.batch_size is not None:
                os.environ["BATCH_SIZE"] = options.batch_size
            with _home() as home:
                return tell(options.archives, home, options.out, options.keep, options.verbose)
        except SetupError as error:
            print(error, file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED


def _interrupt(number: int, frame: object) -> None:
    """One Ctrl-C is enough; what ends because of it is not to be interrupted by another."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    os.write(2, b"\nstopping ...\n")
    raise KeyboardInterrupt


@contextmanager
def _home() -> Iterator[Path]:
    """A directory for all that the services write, gone in the end."""
    from devtools.services import uninterrupted

    home = None
    try:
        with uninterrupted():
            home = Path(mkdtemp(prefix="biospex-demo-"))
        yield home
    finally:
        with uninterrupted():
            if home:
                shutil.rmtree(home, ignore_errors=True)


def _archive(text: str) -> Path:
    path = Path(text).expanduser()
    if path.is_dir():
        inside = next((file for file in sorted(path.glob("*")) if file.is_file()), None)
        such_as = f', such as ARCHIVE="{inside}"' if inside else ""
        raise argparse.ArgumentTypeError(
            f"{path} is a folder; name the archive itself (.zip, .tar.gz or .tar){such_as}."
        )
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"There is no archive {path}.")
    return path


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        sys.exit(message.removeprefix("argument ARCHIVE: "))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m devtools.demo", description=__doc__)
    parser.add_argument("archives", nargs="*", type=_archive, metavar="ARCHIVE")
    parser.add_argument("--batch-size", help="rows of a batch (2000, or 10 for the small examples)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where batches go (./out)")
    parser.add_argument("--keep", action="store_true", help="leave the UI up until Ctrl-C")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the whole log")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
