"""Loads the blocks named `biospex`, or their defaults from the environment."""

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from boto3 import Session
from botocore.config import Config
from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound
from prefect_aws import AwsCredentials
from pydantic import ValidationError

from blocks.workspace import Workspace
from splitter.aws import Bucket, s3, sqs
from splitter.errors import SetupError
from splitter.sentences import Actor, Sentence, Words
from splitter.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

BLOCK_NAME = "biospex"
REGION = "us-east-2"

BAD_BLOCK = Sentence(
    "block.bad-value",
    "the block {block} has values that cannot be used: {problems:bare}.",
    Actor.OPERATOR,
    "Correct the block in Prefect's UI (Blocks), then press Retry.",
)

BlockType = TypeVar("BlockType", bound=Block)


def load_workspace(settings: Settings) -> Workspace:
    """The saved Workspace block, or a block with the environment's settings."""
    return _load(Workspace) or Workspace.from_settings(settings)


def origin(block: Block) -> str:
    """The origin of a block's values, for the log of a run."""
    if block._block_document_name:
        return f"{block.get_block_type_slug()} block '{block._block_document_name}'"
    return "environment"


class Aws:
    """Creates boto3 clients with the saved credentials, or with boto3's own.

    All clients of a run share a session, because each session loads botocore's service tables. The
    credentials are loaded when they are used, also after unpickling in another process.
    """

    @cached_property
    def _block(self) -> AwsCredentials:
        return _load(AwsCredentials) or AwsCredentials()

    @cached_property
    def session(self) -> Session:
        return self._block.get_boto3_session()

    @property
    def origin(self) -> str:
        return origin(self._block)

    def __reduce__(self) -> Any:
        return Aws, ()

    @property
    def has_long_term_credentials(self) -> bool:
        """Whether the keys do not expire. A role's keys expire within hours."""
        credentials = self.session.get_credentials()
        return credentials is not None and credentials.get_frozen_credentials().token is None

    def bucket(self, name: str, owner: str | None = None) -> Bucket:
        """A bucket; ``owner`` is the AWS account that must own it."""
        return Bucket(cast("S3Client", self.client("s3", s3.CLIENT_CONFIG)), name, owner)

    def sqs(self, queue_url: str) -> "SQSClient":
        """A client for one queue, in the region that its URL names."""
        return cast("SQSClient", self.client("sqs", sqs.CLIENT_CONFIG, sqs.region_of(queue_url)))

    def client(
        self, service: Literal["s3", "sqs", "ecs"], config: Config, region: str | None = None
    ) -> Any:
        """A boto3 client with the block's endpoint and ``config``'s retries and timeouts."""
        parameters = self._block.aws_client_parameters.get_params_override()
        parameters["config"] = config.merge(parameters.get("config") or Config())
        region = region or self.session.region_name or os.environ.get("AWS_REGION") or REGION
        return self.session.client(service, region_name=region, **parameters)


def _load(kind: type[BlockType]) -> BlockType | None:
    try:
        return cast(BlockType, kind.load(BLOCK_NAME))
    except ValidationError as error:
        problems = [f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors()]
        block = f"{kind.get_block_type_slug()}/{BLOCK_NAME}"
        raise SetupError(BAD_BLOCK, block=Words(block), problems=problems) from error
    except ValueError as error:
        if isinstance(error.__cause__, ObjectNotFound):
            return None
        raise
