"""Tags and links for finding runs, and the doc links of flows."""

from typing import Any, TypeVar
from urllib.parse import quote
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.flows import Flow
from prefect.settings import get_current_settings

from flows.support.attempt import is_deployed
from splitter.messages import ReplyAddress, printable
from splitter.settings import Docs, Settings

AnyFlow = TypeVar("AnyFlow", bound=Flow[..., Any])


def documented(flow: AnyFlow) -> AnyFlow:
    """Add the links to the docs to a flow's description, which its deployment shows.

    The UI keeps line breaks, so those within a paragraph are removed.
    """
    text, _, _ = str(flow.description).partition("\n\nArgs:")
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    flow.description = "\n\n".join(
        [
            *paragraphs,
            f"**To read on**: when a run is red, {Docs().page('operations.md')}; what a sentence "
            f"means, {Docs().page('messages.md')}.",
        ]
    )
    return flow


def deployment_tags(kind: str, settings: Settings) -> list[str]:
    """The tags of a deployment; every run of it gets them, whoever starts it."""
    environment = settings.biospex_environment
    return ["biospex", kind, *([environment] if environment else [])]


def download_tag(address: ReplyAddress) -> str:
    """The tag of the runs of one download."""
    return f"download-{printable(address.download_id)}"


def tag_this_run(address: ReplyAddress) -> None:
    """Give a run that a person started the download's tag; the listener tags its own runs."""
    if not is_deployed() or download_tag(address) in runtime.flow_run.tags:
        return
    with get_client(sync_client=True) as prefect:
        prefect.update_flow_run(
            UUID(runtime.flow_run.id), tags=[*runtime.flow_run.tags, download_tag(address)]
        )


def run_page(run: UUID) -> str:
    """The address of a run's page in Prefect's UI."""
    return f"{_ui()}/runs/flow-run/{run}"


def runs_page(tag: str) -> str:
    """The address of the list of runs with a tag."""
    return f"{_ui()}/runs?tags={quote(tag)}"


def _ui() -> str:
    """The address of Prefect's UI; on a server the pages without ``v2`` are those of the old UI."""
    settings = get_current_settings()
    url = (settings.ui_url or "").rstrip("/")
    is_cloud = (settings.api.url or "").startswith(settings.cloud.api_url)
    return url if is_cloud else f"{url}/v2"
