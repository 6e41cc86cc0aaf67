"""Throw broken archives, streams and manifests at their readers.

``python -m bench.fuzz --minutes 10``. Each input is made of a sound one, by mutations that know the
formats: fields of ZIP records and tar headers (checksums mended), pax records, hard links, sparse
files cut at every block, offsets that overflow, the output of seven kinds of compressors, quotes
and line ends of CSV, besides cuts, splices of two inputs and random bytes. The promises that are
checked for each:

- a result, or an ``ExportError``; no other exception, in seconds and within bounded memory;
- nothing is written but the store;
- an accepted archive has the members that ``zipfile`` or ``tarfile`` read, ``ZipIndex`` agrees with
  ``extract``, and the batches planned from it are ZIPs with the same images;
- a compressed stream is read as the library that its writers use reads it, however it is cut into
  pieces, and refused where size or checksum are not those of the archive;
- the rows of an accepted manifest are unchanged in its batches, as ``csv`` reads them;
- a sentence or an artifact shows any text on one line, without a character that acts or hides, and
  a value cannot end its quotation marks (``sentences``);
- something long in a trigger, a manifest or an archive takes a time that its length bounds
  (``cost``).

An input is known by target, seed and number: ``--again archive:7:1234`` runs a single one. Exits
with 1 if anything was found.
"""
