"""Archives of any format: recognise one, list its files, read them, and say why one is damaged.

The readers handle sound archives; ``damage`` turns their failures into sentences. Nothing is
written but the store of ``extract``, and a member's name never becomes a path of this machine.
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
