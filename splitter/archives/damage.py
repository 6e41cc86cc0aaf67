"""Turns the exceptions of libraries for damaged data into sentences."""

import errno
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from isal.isal_zlib import IsalError

from splitter.archives.members import ArchiveError
from splitter.archives.zstandard import zstd
from splitter.sentences import Problem, Sentence, escaped

DAMAGE: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RecursionError,
    ValueError,
    cast("type[Exception]", IsalError),  # its stubs declare an instance
    zstd.ZstdError,
)
"""Exceptions of ``zipfile``, ``tarfile`` and the decompressors for damaged data."""

DAMAGED = Sentence(
    "archive.damaged",
    "The archive is damaged or incomplete ({cause:bare}); export it again.",
)
MEMBER_DAMAGED = Sentence(
    "archive.damaged-file",
    "The archive is damaged or incomplete: {name} cannot be unpacked ({cause:bare}); export it "
    "again.",
)
TOO_STRONG = Sentence(
    "archive.compressed-too-strongly",
    "The archive was compressed so strongly that it cannot be unpacked here ({cause:bare}); "
    "unpack it, and make an ordinary ZIP of its content.",
)

LONGEST_CAUSE = 200


@contextmanager
def reading(member: str = "") -> Iterator[None]:
    """Turn a library's exception into an ``ArchiveError``.

    Args:
        member: the name of the member that is read, if any.
    """
    try:
        yield
    except DAMAGE as error:
        raise ArchiveError(of_data(error, member)) from error
    except OSError as error:  # from bz2, or from an offset that no file can have
        if type(error) is not OSError or error.errno not in (None, errno.EINVAL):
            raise
        raise ArchiveError(of_data(error, member)) from error


def of_data(error: Exception, member: str = "") -> Problem:
    """The sentence for data that a library cannot read."""
    # A library's text begins with an error number, and may quote the archive.
    text = escaped(" ".join(str(error).split()), LONGEST_CAUSE)
    cause = re.sub(r"^Error -?\d+ ?", "", text).rstrip(".")
    if re.search("memory", cause, re.IGNORECASE):  # lzma and zstd have no error code for this
        return TOO_STRONG(cause=cause)
    return MEMBER_DAMAGED(name=member, cause=cause) if member else DAMAGED(cause=cause)
