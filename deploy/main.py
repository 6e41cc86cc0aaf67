"""Deploys the batch creator to an AWS account that has a bucket; deploy.sh starts it."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
from botocore.exceptions import BotoCoreError, ClientError
from prefect.context import refresh_global_settings_context

from deploy import account
from deploy.answers import ENVIRONMENTS, QUESTIONS, SIZES, Case, load, offer, save
from deploy.steps import ROOT, Deployment, DeploymentError

ANSWERS = Path(__file__).parent

HELP = """\
Asks questions, shows a plan, checks the answers and the account, and carries the plan out. Run it
again at any time: to upgrade, to change an answer, or after an error. docs/deploying.md explains
it."""

ERRORS = (
    DeploymentError,
    subprocess.CalledProcessError,
    ClientError,
    BotoCoreError,
    httpx.HTTPError,
    KeyboardInterrupt,
)
"""Errors that a sentence explains; another one is a mistake in this program."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Deploy. The exit status is that of a command that failed, or 1 after another error."""
    options = _options(arguments)
    place = "tools and credentials"
    try:
        deployment = prepare(options)
        show_plan(deployment)
        if not options.dry_run:
            if not options.yes and answer("Go on? (y, n)", "n")[:1] not in ("y", "Y"):
                print("Nothing was changed.")
                return 0
            save(ANSWERS / f"{deployment.environment}.env", deployment.given)
        for number, step in enumerate(deployment.steps(), 1):
            place = f"{number}, {step.name}"
            print(f"== {place}")
            step.run()
    except ERRORS as error:
        advice = "docs/deploying.md, After an error, says what to look at."
        print(f"{error}\n\nStopped at step {place}. {advice}", file=sys.stderr)
        return error.returncode if isinstance(error, subprocess.CalledProcessError) else 1
    show_end(deployment)
    return 0


def prepare(options: argparse.Namespace) -> Deployment:
    """Find the tools, ask the questions and look at the stack."""
    os.environ["PATH"] += f"{os.pathsep}{ROOT / '.venv' / 'bin'}"  # an aws CLI, if there is none
    docker = next((one for one in ("docker", "podman") if shutil.which(one)), None)
    if not docker:
        raise DeploymentError("There is neither docker nor podman.")

    def prompt(question: str, default: str) -> str:
        return default if options.yes else answer(question, default)

    environment = prompt(f"Environment ({', '.join(ENVIRONMENTS)})", options.environment or "prod")
    if environment not in ENVIRONMENTS:
        raise DeploymentError(f"There is no environment {environment!r}.")
    last = load(ANSWERS / f"{environment}.env")
    case = Case(environment, open_api=options.open_api)
    given = case.answers
    if not options.yes:
        print("Enter takes the default in brackets, - leaves the answer empty.")
    for name, question in QUESTIONS.items():
        offered = offer(name, last, case)
        if name == "SHAPE" and options.shape:
            given[name] = options.shape
        else:
            given[name] = prompt(f"\n{question['Description']}\n{name}", offered)
        if name == "AWS_REGION":
            if not account.is_region(given[name]):
                raise DeploymentError(f"AWS_REGION={given[name]!r}: AWS has no such region.")
            os.environ["AWS_REGION"] = os.environ["AWS_DEFAULT_REGION"] = given[name]
            case = replace(case, stack=account.Stack.named(f"biospex-{environment}"))
        if name == "SHAPE" and given[name] != offered:  # another task, another size
            last |= SIZES.get(given[name], {})
    os.environ["PREFECT_API_URL"] = given["PREFECT_API_URL"]
    os.environ["BIOSPEX_ENVIRONMENT"] = environment  # a tag of every run
    for setting in given["FLOW_SETTINGS"].split():
        if setting.startswith("DOCS_URL="):
            os.environ["DOCS_URL"] = setting.partition("=")[2]
    refresh_global_settings_context()
    return Deployment(case, commit(), docker, options.dry_run)


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    described = subprocess.check_output(command, cwd=ROOT, text=True).strip()  # noqa: S603
    # Each build of uncommitted changes needs a tag of its own, or the service would not change.
    is_dirty = described.endswith("-dirty")
    return described + (f"-{datetime.now(UTC):%Y%m%dT%H%M%SZ}" if is_dirty else "")


def answer(question: str, default: str) -> str:
    try:
        typed = input(f"{question} [{default}]: ") or default
    except EOFError:
        raise DeploymentError("No answer; with --yes nothing is asked.") from None
    return "" if typed == "-" else typed


def show_plan(deployment: Deployment) -> None:
    given, aws = deployment.given, account.client("sts").get_caller_identity()["Account"]
    print(
        f"\nEnvironment {deployment.environment}: account {aws}, {given['AWS_REGION']}, Prefect at "
        f"{given['PREFECT_API_URL']}"
    )
    for number, step in enumerate(deployment.steps(), 1):
        print(f"  {number}. {step.name:<12} {step.plan}")
    if "-dirty" in deployment.commit:
        print("NOTE: the image will have uncommitted changes.")
    if deployment.dry_run:
        print("Dry run: a + marks each change.")
    print()


def show_end(deployment: Deployment) -> None:
    if deployment.dry_run:
        print("\nNothing was changed.")
        return
    outputs, given = deployment.stack.outputs, deployment.given
    print(f"""
Done. Worker, listener and alarms are on CloudWatch's dashboard
  {deployment.environment}-biospex-batch-creator
Consumers of the trigger queue (there must be exactly one):
  .venv/bin/python -m deploy.consumers {outputs["TriggerQueueArn"]}

A first export, of an archive that is in the bucket:
  AWS_REGION={given["AWS_REGION"]} PREFECT_API_URL={given["PREFECT_API_URL"]} \\
    TRIGGER_QUEUE_URL={outputs["TriggerQueueUrl"]} \\
    UPDATES_QUEUE_URL={outputs["UpdatesQueueUrl"]} \\
    make submit ANSWER=1 ARCHIVE=s3://{given["BUCKET"]}/export/NAME.zip""")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("deploy/deploy.sh", description=HELP, allow_abbrev=False)
    add = parser.add_argument
    add("--environment", choices=ENVIRONMENTS, help="they differ in names only")
    add("--shape", choices=["pools", "single"], help="tasks for each export, or one for everything")
    add("--yes", action="store_true", help="ask nothing; take the last answers, or the defaults")
    add("--dry-run", action="store_true", help="check, print each change, and change nothing")
    add(
        "--open-api",
        action="store_true",
        help="accept a Prefect API on this machine, or one without authentication, whose users can "
        "run code in the roles of the tasks",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
