"""Run `create_batches` in this process and print, as JSON, what it took: for the other benches.

python -m bench.measured_export '{"downloadId": 1, "file": …}'
"""

import json
import resource
import sys
from collections import Counter
from typing import Any

from botocore.httpsession import URLLib3Session
from prefect.client.orchestration import get_client

from flows.create_batches import create_batches


class Traffic:
    """Counts requests to AWS and the bytes of their bodies, both ways, below every retry."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.sent = self.received = 0

    def watch(self) -> None:
        """Count from now on, in every client of this process."""
        send = URLLib3Session.send

        def counted(session: URLLib3Session, request: Any) -> Any:
            answer = send(session, request)
            copied = "x-amz-copy-source" in request.headers
            self.requests["COPY" if copied else request.method] += 1
            self.sent += int(request.headers.get("Content-Length") or 0)
            if request.method != "HEAD":  # whose answer states a length and has no body
                self.received += int(answer.headers.get("Content-Length") or 0)
            return answer

        URLLib3Session.send = counted  # type: ignore[method-assign, assignment]


def main() -> None:
    traffic = Traffic()
    traffic.watch()
    state = create_batches(json.loads(sys.argv[1]), return_state=True)
    assert state.state_details.flow_run_id
    with get_client(sync_client=True) as prefect:
        run = prefect.read_flow_run(state.state_details.flow_run_id)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    measured = {
        "state": state.name,
        "seconds": run.total_run_time.total_seconds(),
        "received": traffic.received,
        "sent": traffic.sent,
        "requests": dict(traffic.requests),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory": usage.ru_maxrss * 1024,
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
