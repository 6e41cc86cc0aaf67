"""Makes the batches of an export: ``lanes`` chooses how, ``splice`` and ``zip`` list the parts of a
batch, ``assembly`` puts them together in S3, and ``outcome`` describes the result.

It offers no names here: the listener reads ``outcome``, and must not load pandas for it.
"""
