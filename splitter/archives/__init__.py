"""Recognises archives, lists and reads their files, and explains damage.

The readers handle sound archives. ``damage`` turns their errors into sentences. Only ``extract``
writes, into a single file, so a member's name never becomes a path on this machine.
"""

from splitter.archives.extract import Contents
from splitter.archives.formats import Format, identify
from splitter.archives.members import ArchiveError, Limits, Member
from splitter.archives.zip_index import MemberSpan, ZipIndex

__all__ = [
    "ArchiveError",
    "Contents",
    "Format",
    "Limits",
    "Member",
    "MemberSpan",
    "ZipIndex",
    "identify",
]
