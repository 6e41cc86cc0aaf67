"""What the run page of an export shows in the end: a summary, its batches, pictures, the callback.

Of a run that is retried each of them stands there once, as the latest attempt left it, but for the
callback: what was sent twice is shown twice.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote
from uuid import UUID

from prefect import runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import State

from splitter.aws.s3 import Bucket, StoredObject
from splitter.manifest.partition import Partition
from splitter.messages import Failure, Request, Result, to_json
from splitter.settings import Docs
from splitter.wording import count, duration, size

CALLBACK_KEY = "callback"
"""The artifact that says a run has sent its callback; the listener goes by it."""

LINK_SECONDS = 72 * 3600
"""As long as the links in the mail that BIOSPEX sends."""


def publish(
    request: Request,
    source: StoredObject,
    lane: str,
    parts: Partition,
    sizes: Sequence[int],
    warnings: Sequence[str],
    zooniverse: Sequence[str],
    links: Sequence[str],
    seconds: float,
    earlier: Sequence[State[Any]],
) -> None:
    """Attach the summary and the table of batches to the current flow run.

    Args:
        lane: how the archive was split, and why so.
        sizes: bytes of each batch ZIP, in the order of ``parts.batches``.
        warnings: sentences about what a person may want to look at.
        zooniverse: sentences about what Zooniverse will say of the batches.
        links: where each batch can be had.
        seconds: that the split took.
        earlier: how earlier attempts of the run ended.
    """
    _remove("summary", "batches")
    batches = list(zip(parts.batches, sizes, links, strict=True))
    rows = sum(batch.rows for batch in parts.batches)
    remarks = "\n".join(f"- ⚠️ {warning}" for warning in warnings) or "No warnings."
    said = "\n".join(f"- {sentence}" for sentence in zooniverse)
    warned = len(warnings) + len(parts.zooniverse)
    noted = count(warned, "warning") if warned else "no warnings"
    more = f" to `part{len(batches)}`" if len(batches) > 1 else ""
    create_markdown_artifact(
        key="summary",
        description=f"{count(rows, 'row')} in {count(len(batches), 'batch', 'batches')}, {noted}",
        markdown=f"""\
**{request.file}** for download **{request.download_id}**: {count(rows, "row")} in \
{count(len(batches), "batch", "batches")}, {size(sum(sizes))}, made in {duration(seconds)}.

{remarks}

| | |
| --- | --- |
| Archive | `s3://{request.s3_bucket}/{request.export_path}`, {size(source.size)} |
| Batches | `s3://{request.s3_bucket}/{request.batch_key(1)}`{more} |
| Lane | {lane} |
| Manifest | `{parts.manifest}` |

Rows, size and link of each batch: *batches*, on the run page.
{_ends(earlier)}
### Zooniverse

{said}

What to do with a batch: {Docs().page("zooniverse.md")}

### Once more?

*Retry* on the run page makes what is missing and sends the callback again.
""",
    )
    create_table_artifact(
        key="batches",
        description="Rows, size and link of each batch",
        table=[
            {
                "batch": batch.part,
                "rows": f"{batch.first_row}-{batch.last_row}",
                "images": len(batch.images),
                "size": size(written),
                "file": f"[{request.batch_file(batch.part)}]({link})",
                "bytes": written,
            }
            for batch, written, link in batches
        ],
    )


def publish_pictures(names: Sequence[str], sheet: bytes) -> None:
    """Attach a contact sheet, a JPEG with a thumbnail of each of the images of these names."""
    _remove("images")
    create_markdown_artifact(
        key="images",
        description=f"{count(len(names), 'image')}, evenly spread over the export",
        markdown=f"![thumbnails](data:image/jpeg;base64,{b64encode(sheet).decode()})\n\n"
        "From left to right: " + ", ".join(f"`{name}`" for name in names),
    )


def publish_failure(
    begin: str,
    sentence: str,
    advice: str,
    earlier: Sequence[State[Any]],
    *,
    is_made: bool,
    is_tried_again: bool,
) -> None:
    """Attach to the current flow run why there are no batches, and what an operator can do.

    Args:
        begin: what of the batches, such as "No batches yet:".
        is_made: whether they are in place, and only BIOSPEX could not be told.
        is_tried_again: whether the listener does so before it answers.
    """
    wait = ", as the listener tries this export again first" if is_tried_again else ""
    _remove("summary", *([] if is_made else ["batches", "images"]))
    create_markdown_artifact(
        key="summary",
        description=f"{begin} {sentence}",
        markdown=f"**{begin}** {sentence}\n\n**What to do:** {advice}\n\n"
        f"**What BIOSPEX was told:** *callback*, on the run page. None there: nothing{wait}.\n"
        f"{_ends(earlier)}\n"
        f"What each sentence means: {Docs().page('messages.md')}\n",
    )


def publish_callback(message: Result | Failure) -> None:
    """Attach the callback that has been sent to the current run."""
    create_markdown_artifact(
        key=CALLBACK_KEY,
        markdown=callback_markdown(message),
        description=callback_title(message),
    )


def callback_title(message: Result | Failure) -> str:
    return f"BIOSPEX was told: {_told(message)}"


def callback_markdown(message: Result | Failure) -> str:
    """The sentence, and the message as it was sent, line by line."""
    sent = json.dumps(json.loads(to_json(message)), indent=2, ensure_ascii=False)
    return f"{callback_title(message)}\n\nThe message:\n\n```json\n{sent}\n```"


def console_link(region: str, bucket: str, key: str) -> str:
    """Where an object is found in the AWS console, by who may log in there."""
    return (
        f"https://{region}.console.aws.amazon.com/s3/object/{bucket}?region={region}"
        f"&prefix={quote(key)}"
    )


def batch_links(bucket: Bucket, keys: Iterable[str], presigned: bool) -> list[str]:
    """Where each batch can be had: one click away for 72 hours, else in the AWS console.

    A link that is signed with a role's passing credentials ends with them, within hours
    (https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-presigned-url.html), so there the
    console's address is the better one.
    """
    if presigned and bucket.signs_lastingly:
        return [bucket.presigned_link(key, LINK_SECONDS) for key in keys]
    return [console_link(bucket.region, bucket.name, key) for key in keys]


def _told(message: Result | Failure) -> str:
    if message.status == "failed":
        return message.error
    return f"{count(len(message.batch_files), 'batch is', 'batches are')} ready."


def _ends(earlier: Sequence[State[Any]]) -> str:
    if not earlier:
        return ""
    lines = [f"{number}. {end.name}: {end.message}" for number, end in enumerate(earlier, 1)]
    return "\n**Earlier attempts**\n\n" + "\n".join(lines) + "\n"


def _remove(*keys: str) -> None:
    """Take what an earlier attempt of the current run has left under these keys off its page."""
    with get_client(sync_client=True) as prefect:
        for artifact in prefect.read_artifacts(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[UUID(runtime.flow_run.id)])),
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=list(keys))),
        ):
            prefect.delete_artifact(artifact.id)
