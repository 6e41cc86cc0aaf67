"""The flow of one export: an archive in S3 becomes batch ZIPs in S3, and BIOSPEX is told.

Reads:      the archive at ``exportPath`` of the trigger message
Writes:     ``batch/{stem}-part{n}.zip`` in the same bucket, then one callback message
Triggered:  by ``flows/listen.py``, from the UI, by ``prefect deployment run`` or from Python
"""

from collections.abc import Sequence
from logging import DEBUG, ERROR, WARNING
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from blocks.saved import Aws
from flows.split import bucket_named, split
from flows.support import artifacts, metric
from flows.support.callbacks import client_for
from flows.support.finding import documented, tag_this_run
from flows.support.log_context import label_lines
from flows.support.outage import waits_for_prefect
from flows.support.progress import best_effort
from flows.support.recovery import earlier_attempts, leave_if_superseded
from flows.tasks import notify
from splitter.aws import sqs as queues
from splitter.aws.sqs import CallbackError
from splitter.batches.outcome import Outcome
from splitter.errors import ExportError, SetupError, Verdict, explain, judge
from splitter.messages import Failure, ReplyAddress, Request, Result, title
from splitter.sentences import Actor
from splitter.settings import Allowed

label_lines()

STATE_NAMES = {
    Actor.MAKER: "Export refused",
    Actor.REQUESTER: "Request refused",
    Actor.OPERATOR: "Needs operator",
    Actor.NOBODY: "Failed",
}
"""Names of the states of failed runs, by who must act, for filters."""


def run_name() -> str:
    request = runtime.flow_run.parameters.get("request")
    return request if isinstance(request, str) else title(request)


@documented
@flow(
    name="create-batches",
    flow_run_name=run_name,
    # A request that cannot be carried out is answered, so the flow checks it, not Prefect.
    validate_parameters=False,
)
def create_batches(request: Request | str) -> Result:
    """Split one export into batch ZIPs of BATCH_SIZE rows and tell BIOSPEX where they are.

    A large ZIP is **spliced**: S3 itself copies the images' bytes into the batches. Any other
    archive is **extracted**: fetched, unpacked, checked as a whole, and zipped anew. Nothing is
    uploaded before the whole manifest has been checked, and batches that an earlier run has put in
    place are kept.

    The outcome goes to the request's `updatesQueueUrl`: every batch's file name, or, where the
    export or the installation is at fault, one sentence that says why there are none. Any other
    fault only ends the run: the listener tries it again, MAX_ATTEMPTS in all, before it answers.

    **To start one by hand**, give `s3://bucket/key` as the request. BIOSPEX is then not told: the
    outcome is on the run page only. A trigger message as the request is answered at its queue.

    **To repeat a run**, press Retry: it uploads what is missing and sends the callback again.

    Called from Python it returns the `Result`, or raises the error that ended it: Prefect unwraps
    the state.
    """
    log = get_run_logger()
    earlier: list[State[Any]] = []
    with best_effort("What earlier attempts ended in", log):
        earlier = earlier_attempts()
        for number, end in enumerate(earlier, 1):
            log.warning("Attempt %d ended %s: %s", number, end.name, end.message)
    outcome = None
    with waits_for_prefect():
        try:
            if isinstance(request, str):
                request = Request.by_hand(request)
            else:
                request = Request.parse(request)
            with best_effort("The tag of the download", log):
                tag_this_run(request)
            Allowed().check(request)
            aws = Aws()
            if request.wants_answer:
                sqs = client_for(aws, request)
                queues.check_callback_queue(sqs, request)
            bucket = bucket_named(request.s3_bucket, aws)
            log.info("AWS credentials come from the %s", aws.origin)
            outcome = split(request, bucket, earlier)
            # Which waits for Prefect: a callback that is sent while Prefect is away could not be
            # noted, and would be sent once more.
            leave_if_superseded()
            if request.wants_answer:
                notify(sqs, request, outcome.result)
        except Exception as error:
            return failed(error, request, outcome, earlier)  # type: ignore[return-value]
    name = "Completed with warnings" if outcome.all_warnings else "Completed"
    print(metric.line(name, request.download_id, outcome))
    return Completed(  # type: ignore[return-value]
        name=name, message=outcome.summary, data=outcome.result
    )


def failed(
    error: Exception, request: Any, outcome: Outcome | None, earlier: Sequence[State[Any]]
) -> State[Any]:
    """Log, show and answer why a run failed; returns the state that it ends in.

    Args:
        outcome: the batches, where only the callback could not be sent.
        earlier: the ends of earlier attempts, for the summary.
    """
    log = get_run_logger()
    verdict = judge(error)
    is_final = isinstance(error, ExportError | SetupError)
    begin = "No batches:" if is_final else "No batches yet:"
    if outcome:
        begin = "Batches were created, but BIOSPEX was not told:"
    level = ERROR if is_final else WARNING  # an alarm counts errors; a retry is none yet
    log.log(level, "%s %s", begin, verdict.said)
    log.log(level, "What to do: %s", verdict.advice)
    log.log(DEBUG if is_final else WARNING, "The traceback:", exc_info=error)
    with best_effort("The summary", log):
        artifacts.publish_failure(begin, verdict, earlier, outcome, is_tried_again=not is_final)
    if is_final and not outcome and not isinstance(error, CallbackError):
        answer_failure(request, verdict)
    name = STATE_NAMES[verdict.actor] if is_final else "Failed"
    address = ReplyAddress.of(request)
    print(metric.line(name, address and address.download_id, None))
    return Failed(
        name=name,
        message=f"{begin} {verdict.said}" if outcome else str(verdict.said),
        data=error,
    )


def answer_failure(request: Any, verdict: Verdict) -> None:
    """Send the failure to BIOSPEX, if the request names a queue that may be used."""
    address = Allowed().reply_address(request)
    if not address:
        return
    try:
        failure = Failure(download_id=address.download_id, error=str(verdict.said))
        leave_if_superseded()
        notify(client_for(Aws(), address), address, failure)
    except Exception as unsent:
        get_run_logger().error("BIOSPEX could not be told: %s", explain(unsent))
