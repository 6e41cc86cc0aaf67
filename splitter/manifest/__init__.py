"""Reads a manifest, checks it against the archive's files and cuts it into batches.

``text`` reads the rows and ``partition`` cuts them. ``checks`` finds damage in a readable table,
``diagnosis`` explains an unreadable one.
"""

from splitter.manifest.partition import Batch, Partition, find, partition_export
from splitter.manifest.text import MANIFEST, ManifestError

__all__ = ["MANIFEST", "Batch", "ManifestError", "Partition", "find", "partition_export"]
