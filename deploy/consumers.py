"""Prints the consumers of the trigger queue: ``python -m deploy.consumers QUEUE-ARN``."""

import argparse
import sys
from collections.abc import Sequence

from botocore.exceptions import BotoCoreError, ClientError

from deploy import account, server


def consumers(trigger_queue_arn: str) -> list[str]:
    """The Lambdas and listeners that take messages from a queue."""
    lambdas = [f"Lambda {one['FunctionArn']}" for one in account.lambda_mappings(trigger_queue_arn)]
    running = [run.name for run in server.listeners() if run.state_type == "RUNNING"]
    return lambdas + [f"listener {name}" for name in running]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the consumers, and exit with 1 unless there is exactly one."""
    parser = argparse.ArgumentParser("python -m deploy.consumers")
    parser.add_argument("queue_arn", metavar="QUEUE-ARN")
    try:
        found = consumers(parser.parse_args(arguments).queue_arn)
    except (ClientError, BotoCoreError) as error:
        sys.exit(f"AWS answers with an error: {error}")
    for consumer in found:
        print(consumer)
    if not found:
        sys.exit("Nobody takes triggers from the queue: start the listener or the Lambda.")
    if len(found) > 1:
        sys.exit(f"{len(found)} consumers take triggers from the queue: stop all but one.")


if __name__ == "__main__":
    main()
