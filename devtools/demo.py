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
from tempfile import TemporaryFile, gettempdir, mkdtemp

STOPPED = 130  # https://tldp.org/LDP/abs/html/exitcodes.html: ended by Ctrl-C
ROOM = 200 * 1024**2
"""Free bytes that the embedded services need beside the archives, with a margin."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit status is 0 if every archive was split."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        options = _options(arguments)
        # What takes seconds to import comes after Ctrl-C is dealt with.
        from devtools.story import tell
        from splitter.errors import ExportError, SetupError

        try:
            for archive in options.archives:
                _look_at(archive)
            _make_room(options.out)
            if options.batch_size is not None:
                os.environ["BATCH_SIZE"] = options.batch_size
            with _home() as home:
                return tell(options.archives, home, options.out, options.keep, options.verbose)
        except (ExportError, SetupError) as error:
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
    """A directory for all that the services write, gone in the end.

    Raises:
        SetupError: if there is too little room for it; a service would only wait for ever.
    """
    from devtools.services import uninterrupted
    from splitter.errors import SetupError
    from splitter.wording import size

    free = shutil.disk_usage(gettempdir()).free
    if free < ROOM:
        raise SetupError(
            f"{gettempdir()} has only {size(free)} free, {size(ROOM)} are needed; set TMPDIR to a "
            "folder with more room."
        )
    home = None
    try:
        with uninterrupted():
            home = Path(mkdtemp(prefix="biospex-demo-"))
        yield home
    finally:
        with uninterrupted():
            if home:
                shutil.rmtree(home, ignore_errors=True)


def _look_at(archive: Path) -> None:
    """Refuse what is no archive at all before anything is started for it.

    Raises:
        ExportError: saying what the file is instead.
    """
    from splitter.archives.formats import identify

    with archive.open("rb") as file:

        def read(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        identify(read, archive.stat().st_size)


def _make_room(out: Path) -> None:
    """Make the directory of the batches.

    Raises:
        SetupError: if it cannot be made or written to.
    """
    from splitter.errors import SetupError

    try:
        (out / "batch").mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise SetupError(
            f"{out} cannot be written to ({error.strerror}); name another folder: "
            f"{sys.executable} -m devtools.demo --out FOLDER"
        ) from error


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
