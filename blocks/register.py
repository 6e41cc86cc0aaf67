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
    """The keys boto3 would find in the environment; without keys a role serves, as on ECS."""
    environment = os.environ.get
    secret = environment("AWS_SECRET_ACCESS_KEY")
    return AwsCredentials(
        aws_access_key_id=environment("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=SecretStr(secret) if secret else None,
        aws_session_token=environment("AWS_SESSION_TOKEN"),
        profile_name=environment("AWS_PROFILE"),
        region_name=environment("AWS_REGION") or environment("AWS_DEFAULT_REGION") or REGION,
        aws_client_parameters=AwsClientParameters(endpoint_url=environment("AWS_ENDPOINT_URL")),
    )


if __name__ == "__main__":
    try:
        register()
    except SetupError as error:
        sys.exit(f"Nothing was saved: {error}")
    print(f"Saved the blocks biospex-workspace/{BLOCK_NAME} and aws-credentials/{BLOCK_NAME}.")
