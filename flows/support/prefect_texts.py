"""Texts of Prefect that this project compares, because Prefect has no typed value for them.

``tests/flows/support/test_prefect_texts.py`` compares each with the installed Prefect.
"""

SERVICE_STOPPED = "Runner is shutting down."
"""Message of the state in which a stopping runner cancels its runs
(``prefect.runner._cancellation_manager``)."""

IN_LINE = "AwaitingConcurrencySlot"
"""Name of the state of a run that waits for a concurrency limit
(``prefect.server.orchestration.core_policy``)."""

LATE = "Late"
"""Name of the state of a run that should have begun some seconds ago
(``prefect.server.schemas.states``)."""

EXCEPTION_OF_FLOW = "Flow run encountered an exception"
"""Beginning of the message of a state that Prefect made from an exception
(``prefect.flow_engine``)."""

RAISED_ONCE_MORE = "Engine execution exited with unexpected exception"
"""Log line that repeats the exception with which a flow has ended (``prefect.flow_engine``)."""

EVENTS_NOT_SENT = "Service %r failed with %s pending items."
"""Log line of the thread that sends events when its connection is refused
(``prefect._internal.concurrency.services``)."""

NO_EVENTS_SOCKET = "Unable to connect to %r. "
"""Beginning of the log line about the WebSocket for events (``prefect.events.clients``)."""
