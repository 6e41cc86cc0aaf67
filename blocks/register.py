"""Saves the Workspace and the AWS credentials blocks with the values of the environment.

``.venv/bin/python -m blocks.register`` overwrites saved blocks, including changes made in the UI.
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
    Workspace.from_settings(Settings.load()).save(BLOCK_NAME, overwrite=True)
    credentials_from_environment().save(BLOCK_NAME, overwrite=True)


def credentials_from_environment() -> AwsCredentials:
    """Credentials with the long-term keys of the environment. Without keys, runs use a role.

    Temporary keys are not saved: they expire within hours, and Prefect's API shows their session
    token as plain text.
    """
    environment = os.environ.get
    is_long_term = not environment("AWS_SESSION_TOKEN")
    key = environment("AWS_ACCESS_KEY_ID") if is_long_term else None
    secret = environment("AWS_SECRET_ACCESS_KEY") if is_long_term else None
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
        print("The keys of this shell are temporary and were not saved; runs will use a role.")
    print(f"Saved the blocks biospex-workspace/{BLOCK_NAME} and aws-credentials/{BLOCK_NAME}.")
