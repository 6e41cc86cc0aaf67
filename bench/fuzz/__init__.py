"""Fuzz the readers of archives, streams, manifests and messages: ``python -m bench.fuzz``.

Each input is a valid one after mutations that know the formats: fields of ZIP records and tar
headers (with correct checksums), pax records, hard links, sparse files cut at every block,
overflowing offsets, the output of seven kinds of compressors, quotes and line ends of CSV, cuts,
splices of two inputs and random bytes. For each input it checks:

- the result is a value or an ``ExportError``, within seconds and bounded memory;
- only the store is written;
- an accepted archive has the same members as in ``zipfile`` or ``tarfile``, ``ZipIndex`` agrees
  with ``extract``, and the planned batches are ZIPs with the same images;
- a compressed stream has the same content as in its usual library, however it is cut into pieces,
  and is refused if size or checksum differ from the archive;
- the rows of an accepted manifest are unchanged in its batches, as read by ``csv``;
- sentences and artifacts show any text on one line, without control and invisible characters, and a
  value cannot end its quotation marks (``sentences``);
- processor time is linear in the length of a trigger, a manifest or an archive (``cost``).

Target, seed and number identify an input: ``--again archive:7:1234`` runs a single one. Exits with
1 if a check failed.
"""
