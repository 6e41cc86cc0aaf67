"""The final log line of an export: a JSON object with its numbers, for CloudWatch and ``jq``.

CloudWatch Logs turns a line in the embedded metric format into metrics:
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
(read in November 2026).
"""

import json
import time

from splitter.batches.outcome import Outcome

NAMESPACE = "BIOSPEX"
UNITS = {
    "rows": "Count",
    "batches": "Count",
    "images": "Count",
    "archive_bytes": "Bytes",
    "batch_bytes": "Bytes",
    "warnings": "Count",
    "seconds": "Seconds",
}


def line(end: str, download_id: object, outcome: Outcome | None) -> str:
    """The final line of an export.

    Args:
        end: the name of its final state.
        outcome: None for a failed export, whose line has no numbers.
    """
    numbers = outcome.numbers() if outcome else {}
    metrics = [{"Name": name, "Unit": unit} for name, unit in UNITS.items() if name in numbers]
    return json.dumps(
        {
            "_aws": {
                "Timestamp": round(time.time() * 1000),
                "CloudWatchMetrics": [
                    {
                        "Namespace": NAMESPACE,
                        "Dimensions": [["outcome"]],
                        "Metrics": [{"Name": "exports", "Unit": "Count"}, *metrics],
                    }
                ],
            },
            "outcome": end,
            "download_id": download_id,
            "exports": 1,
            **numbers,
        }
    )
