"""The artifacts on the run page of an export: summary, batches, images, callback.

A later attempt of a run rewrites or replaces those of an earlier one. Callbacks are kept: one that
was sent twice is shown twice.
"""

import json
from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID

from prefect import runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import Artifact, State

from flows.run_page.markdown import code, link, plain
from splitter.aws import Bucket
from splitter.batches.outcome import Outcome
from splitter.messages import BATCH_FOLDER, Failure, Request, Result, to_json
from splitter.sentences import Problem, escaped
from splitter.settings import Docs
from splitter.wording import count, duration, size

if TYPE_CHECKING:  # it imports pandas, which the listener does not need
    from splitter.manifest import Batch, Partition

CALLBACK_KEY = "callback"
"""Key of the artifact that records a callback that was sent; the listener looks for it."""

BY_HAND = "A person started this run, so BIOSPEX gets no callback."

RUN_AGAIN = (
    "Press *Retry* in the menu ⋮ of the run page. The run makes only the batches that are missing, "
    "and sends the callback again."
)

LINKS_SHOWN = 100
"""Links in the summary; the largest export today has ten batches."""

LINK_SECONDS = 72 * 3600
"""How long a link works; the links in BIOSPEX's mail work as long."""


def publish_plan(request: Request, parts: "Partition") -> None:
    """Attach a summary to a run that makes its batches; ``publish`` rewrites it."""
    _remove("batches")
    batches = count(len(parts.batches), "batch", "batches")
    rows = count(sum(batch.rows for batch in parts.batches), "row")
    files = [
        f"- {code(request.batch_file(batch.part))}: {_rows(batch)}"
        for batch in parts.batches[:LINKS_SHOWN]
    ]
    callback = (
        "BIOSPEX gets its callback when all batches exist." if request.wants_answer else BY_HAND
    )
    _write_summary(
        description=f"Making {rows} in {batches}",
        markdown=f"""\
**{plain(request.file)}** for download **{plain(request.download_id)}**: making {rows} in {batches}.

{callback}

### Batches

Each one appears in {code(f"s3://{request.s3_bucket}/{BATCH_FOLDER}")} when it is complete.

{_list(files, len(parts.batches))}

### Run it again

Press *Cancel* in the menu ⋮ of the run page, then *Retry*. Batches that are complete are kept.
""",
    )


def publish(
    outcome: Outcome, bucket: Bucket, presigned: bool, earlier: Sequence[State[Any]], docs: Docs
) -> None:
    """Attach the summary and the table of batches to the current flow run.

    Args:
        presigned: sign links that work without an account for 72 hours. With the temporary keys of
            a role they would end with those, within hours, so the AWS console is linked instead:
            https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-presigned-url.html
        earlier: how earlier attempts of the run ended.
    """
    _remove("batches")
    request = outcome.request
    link_to = _signed_link if presigned else _console_link
    batches = [
        (batch, written, link_to(bucket, request.batch_key(batch.part)))
        for batch, written in zip(outcome.batches, outcome.sizes, strict=True)
    ]
    warned = outcome.all_warnings
    noted = count(len(warned), "warning") if warned else "no warnings"
    answer = "" if request.wants_answer else f"\n{BY_HAND}\n"
    remarks = "\n".join(f"- ⚠️ {plain(warning)}" for warning in outcome.warnings)
    problems = "\n".join(f"- {plain(sentence)}" for sentence in outcome.zooniverse)
    files = [
        f"- {link(request.batch_file(batch.part), address)}: {_rows(batch)}, {size(written)}"
        for batch, written, address in batches[:LINKS_SHOWN]
    ]
    _write_summary(
        description=f"{outcome.summary}, {noted}",
        markdown=f"""\
**{plain(request.file)}** for download **{plain(request.download_id)}**: {outcome.summary}, \
made in {duration(outcome.seconds)}.
{answer}
{remarks or "No warnings."}

### Batches

{_list(files, len(batches))}

| | |
| --- | --- |
| Archive | {_place(request)}, {size(outcome.archive_size)} |
| Lane | {outcome.lane}: {plain(outcome.reason.text)} |
| Manifest | {code(outcome.parts.manifest)} |
{_ends(earlier)}
### Zooniverse

{problems}

What to do with a batch: {docs.page("zooniverse.md")}

### Run it again

{RUN_AGAIN}
""",
    )
    create_table_artifact(
        key="batches",
        description="Rows, images and size of each batch",
        table=[
            {
                "batch": batch.part,
                "rows": f"{batch.first_row}-{batch.last_row}",
                "images": len(batch.images),
                "size": size(written),
                "file": request.batch_file(batch.part),
                "bytes": written,
            }
            for batch, written, _ in batches
        ],
    )


def publish_pictures(names: Sequence[str], sheet: bytes) -> None:
    """Attach a contact sheet, a JPEG with a thumbnail of each named image."""
    _remove("images")
    create_markdown_artifact(
        key="images",
        description=f"{count(len(names), 'image')}, evenly spread over the export",
        markdown=f"![thumbnails](data:image/jpeg;base64,{b64encode(sheet).decode()})\n\n"
        "From left to right: " + ", ".join(map(code, names)),
    )


def publish_failure(
    request: Any,
    begin: str,
    problem: Problem,
    earlier: Sequence[State[Any]],
    docs: Docs,
    *,
    has_batches: bool,
    is_tried_again: bool,
) -> None:
    """Attach to the current flow run why it failed, who must act and what they do.

    Args:
        request: a ``Request``, or a message that is none.
        begin: the state of the batches, such as "No batches yet:".
        has_batches: whether all batches exist, and only the callback could not be sent.
        is_tried_again: whether the listener tries the export again before it answers.
    """
    no_callback = "If there is none, none was sent."
    if is_tried_again:
        no_callback = "If there is none, the listener tries the export again before it sends one."
    archive = f"**Archive:** {_place(request)}\n\n" if isinstance(request, Request) else ""
    if not has_batches:
        _remove("batches", "images")
    _write_summary(
        description=plain(f"{begin} {problem}"),
        markdown=f"**{begin}** {plain(problem)}\n\n"
        f"**Who must act:** {problem.actor.value}\n\n"
        f"**What to do:** {problem.advice}\n\n"
        f"{archive}"
        f"**Callback:** see the artifact *callback* of this run. {no_callback}\n"
        f"{_ends(earlier)}\n"
        f"### Run it again\n\n{RUN_AGAIN}\n\n"
        f"All sentences with their codes: {docs.page('messages.md')}\n",
    )


def publish_callback(message: Result | Failure) -> None:
    """Attach a callback that has been sent to the current flow run."""
    create_markdown_artifact(
        key=CALLBACK_KEY,
        markdown=callback_markdown(message),
        description=plain(callback_title(message)),
    )


def callback_title(message: Result | Failure) -> str:
    """The content of a callback as one sentence."""
    return f"Sent to BIOSPEX: {_content(message)}"


def callback_markdown(message: Result | Failure) -> str:
    """The sentence of a callback, and the message itself with one field a line."""
    sent = json.dumps(json.loads(to_json(message)), indent=2, ensure_ascii=not _is_safe(message))
    return f"{plain(callback_title(message))}\n\nThe message:\n\n```json\n{sent}\n```"


def _is_safe(message: Result | Failure) -> bool:
    """Whether a message has no control or direction characters."""
    text = message.model_dump_json()
    return escaped(text, len(text)) == text


def _signed_link(bucket: Bucket, key: str) -> str:
    return bucket.presigned_link(key, LINK_SECONDS)


def _console_link(bucket: Bucket, key: str) -> str:
    """The address of an object in the AWS console, for people who can sign in there."""
    return (
        f"https://{bucket.region}.console.aws.amazon.com/s3/object/{bucket.name}"
        f"?region={bucket.region}&prefix={quote(key)}"
    )


def _place(request: Request) -> str:
    return code(f"s3://{request.s3_bucket}/{request.export_path}")


def _rows(batch: "Batch") -> str:
    return f"rows {batch.first_row:,} to {batch.last_row:,}"


def _list(lines: Sequence[str], total: int) -> str:
    """The lines of a list, and how many it leaves out."""
    more = [f"- and {total - len(lines):,} more"] if total > len(lines) else []
    return "\n".join([*lines, *more])


def _content(message: Result | Failure) -> str:
    if message.status == "failed":
        return message.error
    return f"{count(len(message.batch_files), 'batch is', 'batches are')} ready."


def _ends(earlier: Sequence[State[Any]]) -> str:
    if not earlier:
        return ""
    lines = [f"{number}. {end.name}: {plain(end.message)}" for number, end in enumerate(earlier, 1)]
    return "\n**Earlier attempts**\n\n" + "\n".join(lines) + "\n"


def _write_summary(description: str, markdown: str) -> None:
    """Attach the summary to the current flow run, or rewrite the one that it has."""
    with get_client(sync_client=True) as prefect:
        shown = _shown(prefect, "summary")
        # Not deleted and created again: on SQLite, Prefect refuses a deletion while another request
        # writes. Its client then waits for 2 s, and the callback waits for the summary.
        for artifact in shown:
            prefect.update_artifact(
                artifact.id, ArtifactUpdate(data=markdown, description=description)
            )
    if not shown:
        create_markdown_artifact(key="summary", description=description, markdown=markdown)


def _remove(*keys: str) -> None:
    """Delete the artifacts with these keys that an earlier attempt of the current run made."""
    with get_client(sync_client=True) as prefect:
        for artifact in _shown(prefect, *keys):
            prefect.delete_artifact(artifact.id)


def _shown(prefect: SyncPrefectClient, *keys: str) -> list[Artifact]:
    """The artifacts of the current flow run with these keys."""
    run = {"id": {"any_": [UUID(runtime.flow_run.id)]}}
    return prefect.read_artifacts(
        flow_run_filter=FlowRunFilter.model_validate(run),
        artifact_filter=ArtifactFilter.model_validate({"key": {"any_": keys}}),
    )
