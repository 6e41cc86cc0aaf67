"""The run page of an export: its artifacts, progress and thumbnails, in safe Markdown."""
