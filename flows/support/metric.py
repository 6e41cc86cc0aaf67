"""The final line of an export: one JSON object with its numbers, for CloudWatch and ``jq``.

CloudWatch Logs makes metrics of it by itself, in the embedded metric format:
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
    """The line of an export that ended in the state ``end``; without numbers where it failed."""
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
