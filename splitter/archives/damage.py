"""Finds the cause of a damaged archive and returns its sentence.

The readers raise an error with facts, and the checks below find the cause. To handle a new report
from the field, add a check here and a file to the tests.
"""

import errno
import gzip
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from isal.isal_zlib import IsalError

from splitter.archives.members import ArchiveError
from splitter.archives.zip_directory import DirectoryError, Symptom
from splitter.archives.zip_records import LOCAL, LOCAL_FILE_HEADER, MASKED, parse_local_header
from splitter.archives.zstandard import zstd
from splitter.sentences import Problem, Sentence, escaped

DAMAGE: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
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

NO_END = Sentence(
    "archive.zip-cut-off",
    "The archive is damaged or incomplete (its table of contents, at its very end, is missing): it "
    "was cut off, or is the first part of one that was split (.zip.001, .z01); send the whole "
    "archive.",
)
ENDS_EARLY = Sentence(
    "archive.zip-last-bytes-missing",
    "The archive is damaged or incomplete (its last bytes are missing); export it again.",
)
NOT_FOUND = Sentence(
    "archive.zip-directory-not-found",
    "The archive is damaged or incomplete (its table of contents is not where it should be); "
    "export it again.",
)
ENCRYPTED_DIRECTORY = Sentence(
    "archive.zip-encrypted-directory",
    "The archive's table of contents is encrypted; zip the export again without a password.",
)
SPLIT = Sentence(
    "archive.zip-one-volume",
    "The archive is one volume of several: the other parts (.z01, .zip.001 and so on) are missing; "
    "zip the export again as a single file.",
)
FRONT_MISSING = Sentence(
    "archive.zip-front-missing",
    "The archive's beginning is missing: it is the last part of one that was split (.zip.002 "
    "and so on), or was cut off at its front; send the whole archive.",
)
UNREADABLE = Sentence(
    "archive.zip-directory-damaged",
    "The archive is damaged (its table of contents cannot be read); export it again.",
)
CUT_OFF = Sentence(
    "archive.zip-directory-cut-off",
    "The archive is damaged or incomplete (its table of contents is cut off); export it again.",
)
MISCOUNTED = Sentence(
    "archive.zip-miscounted",
    "The archive is damaged: its table of contents lists {listed} files but counts {counted}; "
    "export it again.",
)
MISPLACED = Sentence(
    "archive.zip-files-misplaced",
    "The archive is damaged: its files are not where its table of contents says; export it again.",
)
TWO_ZIPS = Sentence(
    "archive.two-zips",
    "The archive is two ZIPs, one after the other, and most programs read only the last; "
    "unpack both and make one ordinary ZIP of their content.",
)

MISSING_MEMBER = Sentence(
    "archive.zip-file-misplaced",
    "The archive is damaged: {name} is not where the table of contents says; export it again.",
)
RENAMED_MEMBER = Sentence(
    "archive.zip-file-renamed",
    "The archive is damaged: {name} has another name in the table of contents than where it is "
    "stored; export it again.",
)
OVERLAP = Sentence(
    "archive.zip-files-overlap",
    "The archive is damaged: {name} overlaps the file after it; export it again.",
)
BEYOND_END = Sentence(
    "archive.zip-file-beyond-end",
    "The archive is damaged or incomplete: {name} reaches beyond its end; export it again.",
)

LONGEST_CAUSE = 200


def of_directory(error: DirectoryError) -> Problem:
    """The sentence for an unreadable central directory. The first matching check counts."""
    for check in DIRECTORY_CHECKS:
        if problem := check(error):
            return problem
    if error.symptom is Symptom.MISCOUNTED:
        counted = error.end.count if error.end else 0
        return MISCOUNTED(listed=error.listed, counted=counted)
    return BY_SYMPTOM[error.symptom]()


def _encrypted(error: DirectoryError) -> Problem | None:
    """An encrypted directory: the first local header's values are masked."""
    header = parse_local_header(error.read(0, min(LOCAL_FILE_HEADER.size, error.size)))
    is_hidden = error.symptom in (Symptom.NOT_FOUND, Symptom.UNREADABLE)
    return ENCRYPTED_DIRECTORY() if is_hidden and header and header.flags & MASKED else None


def _one_volume(error: DirectoryError) -> Problem | None:
    """One of several volumes, without the files."""
    is_elsewhere = error.symptom in (Symptom.NOT_FOUND, Symptom.MISPLACED)
    return SPLIT() if is_elsewhere and error.several else None


def _front_missing(error: DirectoryError) -> Problem | None:
    """A missing front: the directory is too long, and the file does not begin with a member."""
    reaches_back = error.end is not None and error.end.size > error.end.position
    is_lost = error.symptom is Symptom.NOT_FOUND and reaches_back
    return FRONT_MISSING() if is_lost and error.read(0, min(4, error.size)) != LOCAL else None


DIRECTORY_CHECKS: tuple[Callable[[DirectoryError], Problem | None], ...] = (
    _encrypted,
    _one_volume,
    _front_missing,
)

BY_SYMPTOM = {
    Symptom.NO_END: NO_END,
    Symptom.ENDS_EARLY: ENDS_EARLY,
    Symptom.NOT_FOUND: NOT_FOUND,
    Symptom.BEFORE_START: FRONT_MISSING,
    Symptom.UNREADABLE: UNREADABLE,
    Symptom.CUT_OFF: CUT_OFF,
    Symptom.TWO_ARCHIVES: TWO_ZIPS,
    Symptom.MISPLACED: MISPLACED,
}


@contextmanager
def reading(member: str = "") -> Iterator[None]:
    """Turn a library's exception into an ``ArchiveError``.

    Args:
        member: the name of the member that is read, if any.
    """
    try:
        yield
    except DirectoryError as error:
        raise ArchiveError(of_directory(error)) from error
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
