"""What the run page of an export shows in the end: its batches, a summary, the callback."""

from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from splitter.manifest import Partition
from splitter.messages import Failure, Request, Result, to_json
from splitter.storage import StoredObject

CALLBACK_KEY = "callback"
"""The artifact that says a run has sent its callback; the listener goes by it."""


def publish(
    request: Request,
    source: StoredObject,
    lane: str,
    parts: Partition,
    sizes: Sequence[int],
    odd: Sequence[str],
    zooniverse: Sequence[str],
) -> None:
    """Attach both artifacts to the current flow run.

    Args:
        lane: how the archive was split.
        sizes: bytes of each batch ZIP, in the order of ``parts.batches``.
        odd: sentences about what a person may want to look at.
        zooniverse: sentences about what Zooniverse will say of the batches.
    """
    create_table_artifact(
        key="batches",
        description=f"Batches of {request.file} in the bucket {request.s3_bucket}",
        table=[
            {
                "part": batch.part,
                "rows": f"{batch.first_row}-{batch.last_row}",
                "images": len(batch.images),
                "bytes": size,
                "key": request.batch_key(batch.part),
            }
            for batch, size in zip(parts.batches, sizes, strict=True)
        ],
    )
    rows = sum(batch.rows for batch in parts.batches)
    remarks = "\n".join(f"- ⚠️ {remark}" for remark in odd) or "Nothing odd."
    said = "\n".join(f"- {sentence}" for sentence in zooniverse)
    create_markdown_artifact(
        key="summary",
        description=f"Summary of {request.file}",
        markdown=f"""\
**{request.file}** for download **{request.download_id}**: {rows:,} rows in \
{len(parts.batches)} batches.

| | |
| --- | --- |
| Archive | `s3://{request.s3_bucket}/{request.export_path}`, {source.size:,} bytes |
| Split by | {lane} |
| Manifest | `{parts.manifest}` |
| Batches | {sum(sizes):,} bytes |

{remarks}

### Zooniverse

{said}
""",
    )


def publish_failure(sentence: str, advice: str) -> None:
    """Attach to the current flow run why there are no batches, and what an operator can do."""
    create_markdown_artifact(
        key="summary",
        description="Why there are no batches",
        markdown=f"**No batches.** {sentence}\n\n**What to do:** {advice}",
    )


def publish_callback(message: Result | Failure) -> None:
    """Attach the callback that has been sent to the current run."""
    create_markdown_artifact(
        key=CALLBACK_KEY,
        markdown=callback_markdown(message),
        description=callback_title(message),
    )


def callback_title(message: Result | Failure) -> str:
    return f"Callback to BIOSPEX: {message.status}"


def callback_markdown(message: Result | Failure) -> str:
    told = "where the batches are" if message.status == "success" else "why there are no batches"
    return f"BIOSPEX was told {told}:\n\n```json\n{to_json(message)}\n```"
