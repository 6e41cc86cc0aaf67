"""Split an archive that is in S3, without BIOSPEX: ``python -m cli.submit s3://BUCKET/KEY``.

Reads:      with ``--plan``, the archive's index and manifest, and nothing is written
Writes:     the trigger message that BIOSPEX would send, to ``TRIGGER_QUEUE_URL``
Triggered:  by a person, who then sees the run go by until its callback is out
"""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import datetime

from botocore.exceptions import BotoCoreError, ClientError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun
from prefect.settings import get_current_settings

from blocks.saved import Aws
from cli.pool_settings import planned_settings
from flows.split import bucket_named
from flows.support.recovery import callback_of
from splitter.aws import sqs as queues
from splitter.batches.lanes import Export
from splitter.batches.plan import plan
from splitter.errors import ExportError, SetupError, explain
from splitter.messages import Request, spelled_out, to_json
from splitter.settings import Allowed, Settings

SECONDS_BETWEEN_LOOKS = 2
PATIENCE = 60
"""Seconds after which it is worth a line that no listener has taken the message."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit an archive, or print what would become of it; 0 if it was split or can be."""
    options = _options(arguments)
    settings = Settings.load()
    aws = Aws()
    queue = settings.updates_queue_url or "https://unset.invalid/"
    request = Request.parse(spelled_out(options.archive, queue, options.download_id))
    bucket = bucket_named(request.s3_bucket, aws)
    source = bucket.archive(request.export_path)
    if options.plan:
        settings, said = planned_settings()
        print(said)
        for line in plan(Export(request, source, settings.limits, bucket_named, bucket), settings):
            print(line)
        return 0
    if not settings.trigger_queue_url or not settings.updates_queue_url:
        raise SetupError(
            "TRIGGER_QUEUE_URL and UPDATES_QUEUE_URL must be set: where the trigger goes, and "
            "where the answer to it goes."
        )
    Allowed().check(request)
    sqs = aws.client("sqs", queues.CLIENT_CONFIG)
    sent = sqs.send_message(QueueUrl=settings.trigger_queue_url, MessageBody=to_json(request))
    print(f"Sent the trigger for {request.file} as download {request.download_id}", flush=True)
    with get_client(sync_client=True) as prefect:
        return follow(prefect, sent["MessageId"])


def follow(prefect: SyncPrefectClient, message_id: str) -> int:
    """Print what becomes of a trigger message, up to its callback; 0 if that names batches."""
    shown = None
    waited = 0
    while True:
        run = _run_of(prefect, message_id)
        if run and run.state_name != shown:
            if not shown:
                print(f"{get_current_settings().ui_url or ''}/runs/flow-run/{run.id}")
            shown = run.state_name
            print(f"{datetime.now():%H:%M:%S}  {shown}", flush=True)
        if run and run.state and run.state.is_final():
            callback = callback_of(prefect, run)
            if callback or run.state.is_completed():
                print(callback or "Its callback is out.")
                return 0 if run.state.is_completed() else 1
        if not run and waited == PATIENCE:
            print(f"No listener has taken it for {PATIENCE} s; does listen/listen run?")
        time.sleep(SECONDS_BETWEEN_LOOKS)
        waited += SECONDS_BETWEEN_LOOKS


def _run_of(prefect: SyncPrefectClient, message_id: str) -> FlowRun | None:
    """The run of a message, which the listener makes with the message's id as its key."""
    key = FlowRunFilterIdempotencyKey(any_=[message_id])
    found = prefect.read_flow_runs(flow_run_filter=FlowRunFilter(idempotency_key=key))
    return found[0] if found else None


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cli.submit", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("archive", metavar="s3://BUCKET/KEY")
    parser.add_argument("--plan", action="store_true", help="print the batches, write nothing")
    parser.add_argument("--download-id", help="what the callback is to name (the time)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ExportError, SetupError) as error:
        sys.exit(str(error))
    except (ClientError, BotoCoreError) as error:
        sys.exit(explain(error))
