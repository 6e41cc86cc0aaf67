"""The trigger message of docs/contract.md."""

from typing import Any

STEM = "41-2-3f2a8d1c-5b7e-4c1a-9e2d-7a6b5c4d3e2f"
TRIGGER = {
    "downloadId": 512,
    "file": f"{STEM}.zip",
    "exportPath": f"export/{STEM}.zip",
    "totalSize": 2456719374,
    "s3Bucket": "biospex-app",
    "updatesQueueUrl": "https://sqs.us-east-2.amazonaws.com/000000000000/prod-batch-update",
}


def trigger(**changes: Any) -> dict[str, Any]:
    """Return the trigger with some fields changed or added."""
    return {**TRIGGER, **changes}
