"""Recognises archives, lists and reads their files, and explains damage.

The readers handle sound archives. ``damage`` turns their errors into sentences. Only ``extract``
writes, into a single file, so a member's name never becomes a path on this machine.
"""

from splitter.archives.extract import Contents
from splitter.archives.formats import Format, identify
from splitter.archives.members import DEFAULT_LIMITS, ArchiveError, DosDateTime, Limits, Member
from splitter.archives.watermark import StoppedError, Watermark
from splitter.archives.zip_index import MemberSpan, ZipIndex

__all__ = [
    "DEFAULT_LIMITS",
    "ArchiveError",
    "Contents",
    "DosDateTime",
    "Format",
    "Limits",
    "Member",
    "MemberSpan",
    "StoppedError",
    "Watermark",
    "ZipIndex",
    "identify",
]
