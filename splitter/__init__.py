"""Splits an export into batches, without Prefect. A notebook can use it: docs/architecture.md."""
