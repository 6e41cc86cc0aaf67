"""Split an archive in S3 without BIOSPEX: ``make submit ARCHIVE=s3://BUCKET/KEY``.

Starts a run of ``create-batches`` without a callback and prints its states until its end. With
``--answer`` it sends BIOSPEX's trigger to ``TRIGGER_QUEUE_URL`` instead. With ``--plan`` it reads
the archive's index and manifest, prints the batches and writes nothing.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import ObjectNotFound

from blocks.saved import Aws
from flows.listening.recovery import callback_of
from flows.listening.setup import check_services
from flows.support.run_tags import run_page
from splitter.batches.lanes import Export
from splitter.batches.plan import plan
from splitter.errors import ExportError, SetupError, explain
from splitter.messages import Request, spelled_out, to_json
from splitter.settings import Allowed, Settings

DEPLOYMENT = "create-batches/create-batches"
POOL = "biospex-ecs"
"""The work pool of the exports, in prefect.yaml."""
SECONDS_BETWEEN_LOOKS = 2
PATIENCE = 60
"""Seconds until it reports that the run has not begun."""
STOPPED = 130  # exit status after Ctrl-C: https://tldp.org/LDP/abs/html/exitcodes.html


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 if batches were or would be made."""
    options = _options(arguments)
    settings, allowed = Settings.load(), Allowed()
    request = Request.by_hand(options.archive)
    check_services()
    aws = Aws()
    bucket = aws.bucket(request.s3_bucket, settings.bucket_owner)
    bucket.archive(request.export_path)  # fails here if there is none
    if options.plan:
        for line in plan(Export(request, lambda _: bucket), planned_settings()):
            print(line)
        return 0
    with get_client(sync_client=True) as prefect:
        if options.answer:
            request = _request_with_answer(settings, options.archive)
            allowed.check(request)
            run = _send_trigger(aws, settings, request)
        else:
            allowed.check(request)
            run = _start_run(prefect, options.archive)
        return follow(prefect, FlowRunFilter.model_validate(run))


def planned_settings() -> Settings:
    """Print and return the settings of a run.

    On ECS these are the work pool's settings. A variable of the shell overrides them.
    """
    pool: dict[str, Any] = {}
    with get_client(sync_client=True) as prefect, suppress(ObjectNotFound):
        variables = prefect.read_work_pool(POOL).base_job_template.get("variables", {})
        env = variables.get("properties", {}).get("env", {}).get("default", {})
        names = [name.upper() for name in Settings.model_fields if name.upper() not in os.environ]
        pool = {name: env[name] for name in names if env.get(name) is not None}
    shown = [f"{name}={value} (work pool {POOL})" for name, value in pool.items()]
    print("Settings:", ", ".join([*shown, "the others of this shell, or by default"]))
    return Settings.load(**{name.lower(): value for name, value in pool.items()})


def _start_run(prefect: SyncPrefectClient, archive: str) -> dict[str, Any]:
    """Start a run without a callback, like the form in Prefect's UI; returns its filter."""
    try:
        deployment = prefect.read_deployment_by_name(DEPLOYMENT)
    except ObjectNotFound:
        sys.exit(
            f"Prefect has no deployment {DEPLOYMENT}; start the service (make serve) or deploy it "
            "(make deploy)."
        )
    run = prefect.create_flow_run_from_deployment(deployment.id, parameters={"request": archive})
    print(f"Started a run for {archive}; BIOSPEX gets no callback", flush=True)
    return {"id": {"any_": [run.id]}}


def _request_with_answer(settings: Settings, archive: str) -> Request:
    """BIOSPEX's request, with UPDATES_QUEUE_URL as callback queue."""
    if not settings.trigger_queue_url or not settings.updates_queue_url:
        sys.exit(
            "TRIGGER_QUEUE_URL and UPDATES_QUEUE_URL must be set for an answer: the queue of the "
            "trigger, and the queue of the callback."
        )
    return Request.parse(spelled_out(archive, settings.updates_queue_url))


def _send_trigger(aws: Aws, settings: Settings, request: Request) -> dict[str, Any]:
    """Send BIOSPEX's trigger; returns the filter of its run."""
    sqs = aws.sqs(str(settings.trigger_queue_url))
    sent = sqs.send_message(QueueUrl=str(settings.trigger_queue_url), MessageBody=to_json(request))
    print(f"Sent the trigger for {request.file} as download {request.download_id}", flush=True)
    # The message id is the run's idempotency key.
    return {"idempotency_key": {"any_": [sent["MessageId"]]}}


def follow(prefect: SyncPrefectClient, run_filter: FlowRunFilter) -> int:
    """Print the states of a run and its callback; returns 0 if it made batches."""
    shown: str | None = None
    waited = 0
    try:
        while True:
            run = next(iter(prefect.read_flow_runs(flow_run_filter=run_filter)), None)
            if shown and not run:
                sys.exit("The run was deleted in Prefect.")
            if run and run.state_name != shown:
                if shown is None:
                    print(run_page(run.id))
                shown = run.state_name
                print(f"{datetime.now():%H:%M:%S}  {shown}", flush=True)
            if run and run.state and run.state.is_final():
                callback = callback_of(prefect, run)
                is_by_hand = isinstance(run.parameters.get("request"), str)
                if callback or is_by_hand or run.state.is_completed():
                    print(callback or run.state.message or "The run has ended.")
                    return 0 if run.state.is_completed() else 1
            is_begun = run and run.state and not run.state.is_scheduled()
            if not is_begun and waited == PATIENCE:
                print(f"Not begun for {PATIENCE} s; is the service or a worker running?")
            time.sleep(SECONDS_BETWEEN_LOOKS)
            waited += SECONDS_BETWEEN_LOOKS
    except KeyboardInterrupt:
        print("\nNo longer following. The run continues; its page shows its outcome.")
        return STOPPED


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    description = str(__doc__).partition("\n")[0]
    parser = argparse.ArgumentParser("python -m cli.submit", description=description)
    parser.add_argument("archive", nargs="?", metavar="s3://BUCKET/KEY")
    parser.add_argument("--plan", action="store_true", help="print the batches, write nothing")
    parser.add_argument(
        "--answer",
        action="store_true",
        help="send BIOSPEX's trigger; UPDATES_QUEUE_URL gets the callback",
    )
    options = parser.parse_args(arguments)
    if not options.archive:
        sys.exit("Name the archive: make submit ARCHIVE=s3://bucket/key")
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    except (ExportError, SetupError) as error:
        sys.exit(str(error))
    except (ClientError, BotoCoreError) as error:
        sys.exit(explain(error))
