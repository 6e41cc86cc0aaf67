"""The manifest of an export: reads it, checks it against the images and cuts it into batches.

``text`` reads the rows, ``partition`` cuts them, ``checks`` looks for damage in a table that can be
read, ``diagnosis`` explains one that cannot. The names below are the folder's door.
"""

from splitter.manifest.partition import Batch, Partition, find, partition_export
from splitter.manifest.text import MANIFEST, ManifestError

__all__ = ["MANIFEST", "Batch", "ManifestError", "Partition", "find", "partition_export"]
