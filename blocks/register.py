"""Save the blocks that a deployment uses, from the environment: ``python -m blocks.register``.

Saving again overwrites: the environment of this command wins over earlier changes in the UI.
"""

import os
import sys

from prefect_aws import AwsCredentials
from prefect_aws.client_parameters import AwsClientParameters
from pydantic import SecretStr

from blocks.saved import BLOCK_NAME, REGION
from blocks.workspace import Workspace
from splitter.errors import SetupError
from splitter.settings import Settings


def register() -> None:
    """Save the Workspace and the AWS credentials under the name ``biospex``."""
    Workspace.from_settings(Settings.load()).save(BLOCK_NAME, overwrite=True)
    credentials_from_environment().save(BLOCK_NAME, overwrite=True)


def credentials_from_environment() -> AwsCredentials:
    """The lasting keys of the environment; without keys a role serves, as on ECS.

    Keys with a session token are left out: they end within hours, and Prefect's API shows the
    token as plain text.
    """
    environment = os.environ.get
    lasts = not environment("AWS_SESSION_TOKEN")
    key = environment("AWS_ACCESS_KEY_ID") if lasts else None
    secret = environment("AWS_SECRET_ACCESS_KEY") if lasts else None
    return AwsCredentials(
        aws_access_key_id=key,
        aws_secret_access_key=SecretStr(secret) if secret else None,
        profile_name=environment("AWS_PROFILE"),
        region_name=environment("AWS_REGION") or environment("AWS_DEFAULT_REGION") or REGION,
        aws_client_parameters=AwsClientParameters(endpoint_url=environment("AWS_ENDPOINT_URL")),
    )


if __name__ == "__main__":
    try:
        register()
    except SetupError as error:
        sys.exit(f"Nothing was saved: {error}")
    if os.environ.get("AWS_SESSION_TOKEN"):
        print("The keys of this shell end with its session and were not saved: a role serves.")
    print(f"Saved the blocks biospex-workspace/{BLOCK_NAME} and aws-credentials/{BLOCK_NAME}.")
