"""The flow of one export: it splits an archive in S3 into batch ZIPs and sends BIOSPEX a callback.

Reads:      the archive at ``exportPath`` of the trigger message
Writes:     ``batch/{stem}-part{n}.zip`` in the same bucket, then one callback message
Triggered:  by ``flows/listen.py``, from the UI, by ``prefect deployment run`` or from Python
"""

import gc
from collections.abc import Sequence
from functools import partial
from logging import DEBUG, ERROR, WARNING
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from blocks.saved import Aws
from flows.run_page import artifacts
from flows.run_page.progress import best_effort
from flows.split import split
from flows.support.attempt import earlier_attempts, leave_if_superseded
from flows.support.log_context import label_lines
from flows.support.outage import waits_for_prefect
from flows.support.run_tags import documented, tag_this_run
from flows.tasks import notify
from splitter.aws import CallbackError, CallbackQueue
from splitter.batches.lanes import Export
from splitter.batches.outcome import Outcome, last_line
from splitter.errors import ExportError, SetupError, explain, problem_of
from splitter.messages import Failure, ReplyAddress, Request, Result, title
from splitter.sentences import Actor, Problem
from splitter.settings import Allowed, Docs, Settings

label_lines()
# What was imported stays until the end. Without this line, each full collection of garbage looks at
# all of Prefect's objects, which takes 0.15 s.
gc.freeze()

STATE_NAMES = {
    Actor.MAKER: "Export refused",
    Actor.REQUESTER: "Request refused",
    Actor.OPERATOR: "Needs operator",
    Actor.NOBODY: "Failed",
}
"""Names of the states of failed runs, by who must act, for filters."""


def run_name() -> str:
    """The name of a run: its download and its archive."""
    request = runtime.flow_run.parameters.get("request")
    return request if isinstance(request, str) else title(request)


@documented
@flow(
    name="create-batches",
    flow_run_name=run_name,
    # The flow checks the request, not Prefect, so that a bad request is answered.
    validate_parameters=False,
)
def create_batches(request: Request | str) -> Result:
    """Split one export into batch ZIPs of BATCH_SIZE rows and tell BIOSPEX where they are.

    A large ZIP is **spliced**: S3 itself copies the images' bytes into the batches. Any other
    archive is **extracted**: downloaded, unpacked and zipped again; its batches appear when all of
    it has been checked. No batch appears before the whole manifest has been checked, and complete
    batches of an earlier run are kept.

    The callback goes to the request's `updatesQueueUrl`. It names every batch. If the export or the
    installation is at fault, it has one sentence that says why there are no batches. After any
    other fault the run fails without a callback, and the listener tries it again, up to
    MAX_ATTEMPTS times.

    **To start a run by hand**, give `s3://bucket/key` as the request. BIOSPEX gets no callback: the
    outcome is on the run page only. A trigger message as the request is answered at its queue.

    **To repeat a run**, press Retry: it makes what is missing and sends the callback again.

    Called from Python, it returns the `Result` or raises the error that ended it.
    """
    log = get_run_logger()
    allowed, docs = Allowed(), Docs()
    earlier: list[State[Any]] = []
    with best_effort("The end of earlier attempts", log):
        earlier = earlier_attempts()
        for number, end in enumerate(earlier, 1):
            log.warning("Attempt %d ended %s: %s", number, end.name, end.message)
    outcome: Outcome | None = None
    with waits_for_prefect():
        try:
            if isinstance(request, str):
                request = Request.by_hand(request)
            else:
                request = Request.parse(request)
            with best_effort("The tag of the download", log):
                tag_this_run(request)
            allowed.check(request)
            settings = Settings.load()
            aws = Aws()
            log.info("AWS credentials come from the %s", aws.origin)
            if request.wants_answer:
                callbacks = CallbackQueue(aws.sqs, request)
                callbacks.check()
            export = Export(request, partial(aws.bucket, owner=settings.bucket_owner))
            outcome, made = split(export, settings)
            with best_effort("The summary", log):
                presigned = settings.presigned_links and aws.has_long_term_credentials
                artifacts.publish(outcome, export.bucket, presigned, earlier, docs)
            # This waits for Prefect: a callback that is sent during an outage could not be
            # recorded, and would be sent again.
            leave_if_superseded()
            if request.wants_answer:
                # The states join this task to the batches in the run's graph.
                notify(callbacks, outcome.result, wait_for=made.states)
        except Exception as error:
            has_batches = outcome is not None
            return failed(error, request, has_batches, earlier, allowed, docs)  # type: ignore[return-value]
        with best_effort("The images", log):
            made.pictures.publish()
    name = "Completed with warnings" if outcome.all_warnings else "Completed"
    print(last_line(name, request.download_id, outcome))
    return Completed(  # type: ignore[return-value]
        name=name, message=outcome.summary, data=outcome.result
    )


def failed(
    error: Exception,
    request: Any,
    has_batches: bool,
    earlier: Sequence[State[Any]],
    allowed: Allowed,
    docs: Docs,
) -> State[Any]:
    """Log, publish and answer why a run failed; returns its final state.

    Args:
        has_batches: whether only the callback could not be sent.
        earlier: how earlier attempts ended, for the summary.
    """
    log = get_run_logger()
    problem = problem_of(error)
    is_final = isinstance(error, ExportError | SetupError)
    begin = "No batches:" if is_final else "No batches yet:"
    if has_batches:
        begin = "Batches were created, but the callback was not sent:"
    level = ERROR if is_final else WARNING  # an alarm counts errors, and not what is retried
    log.log(level, "%s %s", begin, problem)
    log.log(level, "What to do: %s", problem.advice)
    log.log(DEBUG if is_final else WARNING, "The traceback:", exc_info=error)
    with best_effort("The summary", log):
        artifacts.publish_failure(
            request,
            begin,
            problem,
            earlier,
            docs,
            has_batches=has_batches,
            is_tried_again=not is_final,
        )
    if is_final and not has_batches and not isinstance(error, CallbackError):
        answer_failure(request, problem, allowed)
    name = STATE_NAMES[problem.actor] if is_final else "Failed"
    address = ReplyAddress.of(request)
    print(last_line(name, address and address.download_id, None))
    return Failed(
        name=name,
        message=f"{begin} {problem}" if has_batches else str(problem),
        data=error,
    )


def answer_failure(request: Any, problem: Problem, allowed: Allowed) -> None:
    """Send BIOSPEX the failure, if the request names a queue that the operator allows."""
    address = allowed.reply_address(request)
    if not address:
        return
    try:
        failure = Failure(download_id=address.download_id, error=str(problem))
        leave_if_superseded()
        notify(CallbackQueue(Aws().sqs, address), failure)
    except Exception as unsent:
        get_run_logger().error("The failure could not be sent to BIOSPEX: %s", explain(unsent))
