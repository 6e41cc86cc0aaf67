"""Fields that each log line of an export has besides its message: download, file and batch.

With ``PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER=json`` they are fields of the line, for CloudWatch
Logs Insights: ``filter download_id = 512 and part = 3``.
"""

import logging
from typing import Any

from prefect.context import FlowRunContext, TaskRunContext

from flows.support.prefect_texts import EVENTS_NOT_SENT, NO_EVENTS_SOCKET, RAISED_ONCE_MORE
from splitter.errors import ExportError, SetupError
from splitter.messages import Request, printable


class Labels(logging.Filter):
    """Adds ``download_id``, ``file`` and ``part`` to the log records of a run, None if unknown.

    Removes the tracebacks of errors that their sentences explain, except from DEBUG lines.
    """

    def __init__(self) -> None:
        super().__init__()
        # Kept for lines of threads outside the run's context, and for a task's last line.
        self._request: Any = None
        self._parts: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if record.levelno > logging.DEBUG and isinstance(error, ExportError | SetupError):
            # The flow has already logged its sentence.
            if record.getMessage().startswith(RAISED_ONCE_MORE):
                return False
            record.exc_info = None
        run, task = FlowRunContext.get(), TaskRunContext.get()
        if run and run.parameters:
            self._request = run.parameters.get("request")
        if task and "batch" in task.parameters:
            self._parts[str(task.task_run.id)] = task.parameters["batch"].part
        request = self._request
        if isinstance(request, Request):
            request = request.model_dump(by_alias=True)
        wanted = request if isinstance(request, dict) else {}
        record.download_id = label(wanted.get("downloadId"))
        record.file = label(wanted.get("file"))
        record.part = self._parts.get(getattr(record, "task_run_id", ""))
        record.message = record.getMessage()
        return True


def label(value: Any) -> Any:
    """A field of a message as a field of a log line: a number as it is, a text shown safely."""
    return value if value is None or isinstance(value, int | float) else printable(value)


class OnceAsWarning(logging.Filter):
    """Passes the first line about events that cannot be sent, as a warning, and drops the others.

    The listener itself warns if heartbeats do not arrive.
    """

    _is_logged = False

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)
        if not text.startswith((EVENTS_NOT_SENT, NO_EVENTS_SOCKET)):
            return True
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        is_first, self._is_logged = not self._is_logged, True
        return is_first


LABELS, ONCE = Labels(), OnceAsWarning()


def label_lines() -> None:
    """Label the lines of runs and their tasks, Prefect's own included, from now on.

    A filter of these loggers, not part of the logging configuration: the file that
    PREFECT_LOGGING_SETTINGS_PATH names replaces all of Prefect's own, would have to be set in every
    process that runs a flow (worker, runner, Dask, notebook) before it imports Prefect, and could
    name no class of this package, which imports Prefect.
    """
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(LABELS)
    for name in ("prefect.events.clients", "prefect._internal.concurrency"):
        logging.getLogger(name).addFilter(ONCE)
