"""Each check of deploy/preflight.py, in a bad and in a good account."""

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from moto.servicequotas.models import ServiceQuotasBackend
from prefect.settings import PREFECT_API_URL, temporary_settings

from blocks.saved import REGION
from deploy import preflight
from deploy.preflight import Finding, Plan
from devtools.services import embedded_prefect
from tests.helpers.biospex import Biospex
from tests.helpers.broken_prefect import broken_prefect

pytestmark = pytest.mark.usefixtures("aws")


def client(service: Any) -> Any:
    return boto3.client(service, region_name=REGION)


@pytest.fixture(autouse=True)
def region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)


@pytest.fixture
def plan(biospex: Biospex) -> Plan:
    """A plain bucket, a new VPC, and a queue of the stack's own."""
    vpc = client("ec2").create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    return Plan(
        bucket=biospex.bucket,
        vpc_id=vpc,
        bucket_key_arn="",
        trigger_queue_arn="",
        vcpu=8,
        capacity="FARGATE",
    )


@pytest.fixture
def queue(biospex: Biospex) -> str:
    """The ARN of a trigger queue with a redrive policy."""
    return preflight.queue_arn(biospex.trigger_queue_url.rpartition("/")[2])


def only(findings: Iterator[Finding], level: str, text: str) -> None:
    [finding] = findings
    assert finding.level == level
    assert text in finding.sentence
    assert len(finding.sentence.splitlines()) == 1


def test_a_missing_bucket(plan: Plan) -> None:
    assert not list(preflight.bucket_is_there(plan))
    missing = replace(plan, bucket=f"missing-{uuid4()}")
    only(preflight.bucket_is_there(missing), "stop", "does not exist")
    only(preflight.check_aws(missing), "stop", "does not exist")  # and is not checked further


def encrypted(plan: Plan, policy: str | None = None) -> str:
    key = client("kms").create_key()["KeyMetadata"]
    if policy:
        client("kms").put_key_policy(KeyId=key["KeyId"], PolicyName="default", Policy=policy)
    default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key["KeyId"]}
    client("s3").put_bucket_encryption(
        Bucket=plan.bucket,
        ServerSideEncryptionConfiguration={
            "Rules": [{"ApplyServerSideEncryptionByDefault": default}]
        },
    )
    return str(key["Arn"])


def test_a_kms_key_that_the_tasks_may_not_use(plan: Plan) -> None:
    assert not list(preflight.bucket_encryption(plan))
    arn = encrypted(plan)
    assert preflight.bucket_key(plan.bucket) == arn
    only(preflight.bucket_encryption(plan), "stop", "answer BUCKET_KEY_ARN with it")
    assert not list(preflight.bucket_encryption(replace(plan, bucket_key_arn=arn)))


def test_a_kms_key_whose_policy_does_not_defer_to_iam(plan: Plan) -> None:
    statement = {"Effect": "Allow", "Principal": {"AWS": "x"}, "Action": "kms:*", "Resource": "*"}
    arn = encrypted(plan, json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    found = preflight.bucket_encryption(replace(plan, bucket_key_arn=arn))
    only(found, "note", "does not leave access to IAM")


def test_a_bucket_that_locks_its_objects(plan: Plan) -> None:
    assert not list(preflight.object_lock(plan))
    name = f"locked-{uuid4()}"
    client("s3").create_bucket(
        Bucket=name,
        ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": REGION},
    )
    locked = replace(plan, bucket=name)
    assert not list(preflight.object_lock(locked))
    client("s3").put_object_lock_configuration(
        Bucket=name,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}},
        },
    )
    only(preflight.object_lock(locked), "stop", "Object Lock")


def test_old_versions_without_a_rule_that_removes_them(plan: Plan) -> None:
    assert not list(preflight.versioning(plan))
    s3 = client("s3")
    s3.put_bucket_versioning(Bucket=plan.bucket, VersioningConfiguration={"Status": "Enabled"})
    only(preflight.versioning(plan), "note", "NoncurrentVersionExpiration")
    proposal = json.loads((Path(preflight.__file__).parent / "lifecycle.json").read_text())
    s3.put_bucket_lifecycle_configuration(Bucket=plan.bucket, LifecycleConfiguration=proposal)
    assert not list(preflight.versioning(plan))


def archiving(plan: Plan, prefix: str) -> None:
    rule = {
        "ID": "archive",
        "Filter": {"Prefix": prefix},
        "Status": "Enabled",
        "Transitions": [{"Days": 30, "StorageClass": "GLACIER"}],
    }
    client("s3").put_bucket_lifecycle_configuration(
        Bucket=plan.bucket, LifecycleConfiguration={"Rules": [rule]}
    )


def test_a_rule_that_archives_exports(plan: Plan) -> None:
    archiving(plan, "other/")
    assert not list(preflight.archived_exports(plan))
    archiving(plan, "export/")
    only(preflight.archived_exports(plan), "stop", "moves export/ to GLACIER")


def test_exports_that_are_archived(plan: Plan) -> None:
    s3 = client("s3")
    s3.put_object(Bucket=plan.bucket, Key="export/new.zip", Body=b"x")
    assert not list(preflight.archived_exports(plan))
    s3.put_object(Bucket=plan.bucket, Key="export/old.zip", Body=b"x", StorageClass="GLACIER")
    only(preflight.archived_exports(plan), "note", "1 of the first 2 exports")


def test_a_network_without_a_gateway_endpoint_for_s3(plan: Plan) -> None:
    only(preflight.s3_endpoint(plan), "note", "no gateway endpoint for S3")
    client("ec2").create_vpc_endpoint(
        VpcId=plan.vpc_id, ServiceName=f"com.amazonaws.{REGION}.s3", VpcEndpointType="Gateway"
    )
    assert not list(preflight.s3_endpoint(plan))


def test_a_quota_below_the_needed_vcpu(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto has quotas of VPC only, so Fargate's is patched in."""
    only(preflight.vcpu_quota(plan), "note", "could not be read")
    monkeypatch.setattr(ServiceQuotasBackend, "get_service_quota", lambda *_, **__: {"Value": 6.0})
    only(
        preflight.vcpu_quota(plan),
        "stop",
        "may run 6 vCPU of FARGATE at once, and the answers need 8:",
    )
    assert not list(preflight.vcpu_quota(replace(plan, vcpu=5)))


def test_services_that_have_no_role_yet(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    service = f"service-{uuid4()}.amazonaws.com"
    monkeypatch.setattr(preflight, "SERVICES", (service,))
    only(preflight.service_roles(plan), "stop", f"--aws-service-name {service}")
    client("iam").create_service_linked_role(AWSServiceName=service)
    assert not list(preflight.service_roles(plan))


def test_a_kept_trigger_queue_is_checked(plan: Plan, queue: str) -> None:
    assert not list(preflight.kept_queue(plan))
    assert not list(preflight.kept_queue(replace(plan, trigger_queue_arn=queue)))
    missing = replace(plan, trigger_queue_arn=f"{queue}-missing")
    assert not list(preflight.kept_queue(missing))  # answers.py says so


def test_a_trigger_queue_without_redrive_policy(plan: Plan, biospex: Biospex) -> None:
    client("sqs").set_queue_attributes(
        QueueUrl=biospex.queue_url, Attributes={"MessageRetentionPeriod": "1209600"}
    )
    queue = preflight.queue_arn(biospex.queue_url.rpartition("/")[2])
    found = list(preflight.kept_queue(replace(plan, trigger_queue_arn=queue)))
    assert [finding.level for finding in found] == ["note", "note"]
    assert "no redrive policy" in found[0].sentence
    assert "MessageRetentionPeriod to 604800" in found[1].sentence


@pytest.fixture
def mapping(queue: str) -> Iterator[str]:
    """The old Lambda on the trigger queue; yields the event source mapping's id."""
    iam, functions, name = client("iam"), client("lambda"), f"creator-{uuid4()}"
    trust = {"Version": "2012-10-17", "Statement": []}
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("index.js", "")
    functions.create_function(
        FunctionName=name,
        Runtime="nodejs22.x",
        Role=role["Role"]["Arn"],
        Handler="index.handler",
        Code={"ZipFile": code.getvalue()},
    )
    made = functions.create_event_source_mapping(FunctionName=name, EventSourceArn=queue)
    yield made["UUID"]
    functions.delete_event_source_mapping(UUID=made["UUID"])


def test_the_old_lambda_still_takes_messages(plan: Plan, queue: str, mapping: str) -> None:
    assert not list(preflight.old_lambda(plan))
    kept = replace(plan, trigger_queue_arn=queue)
    only(preflight.old_lambda(kept), "stop", f"--uuid {mapping} --no-enabled")
    client("lambda").update_event_source_mapping(UUID=mapping, Enabled=False)
    assert not list(preflight.old_lambda(kept))


@pytest.mark.parametrize(
    ("lambda_takes", "listeners", "says"),
    [
        (True, [], None),
        (False, ["listener-1"], None),
        (True, ["listener-1"], "2 consumers take triggers"),
        (False, [], "Nobody takes triggers"),
    ],
)
def test_the_queue_has_exactly_one_consumer(
    lambda_takes: bool,
    listeners: list[str],
    says: str | None,
    queue: str,
    mapping: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client("lambda").update_event_source_mapping(UUID=mapping, Enabled=lambda_takes)
    monkeypatch.setattr(preflight, "running_listeners", lambda: listeners)
    found, findings = preflight.consumers(queue)
    assert len(found) == lambda_takes + len(listeners)
    assert len(findings) == (says is not None)
    assert all(str(says) in finding.sentence for finding in findings)


# -- errors are not answers


def test_only_a_missing_queue_has_no_arn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert preflight.queue_arn(f"missing-{uuid4()}") == ""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    errors = io.StringIO()
    with redirect_stderr(errors):
        assert preflight.main(["queue", "missing"]) == 1
    assert errors.getvalue().startswith("stop: AWS answers with an error: Could not connect")


def test_standard_output_has_the_values_for_the_shell(plan: Plan, queue: str) -> None:
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert preflight.main(["queue", queue.rpartition(":")[2]]) == 0
        assert preflight.main(["stack", f"missing-{uuid4()}"]) == 0
        assert preflight.main(["bucket-key", plan.bucket]) == 0
    assert printed.getvalue() == f"{queue}\n\n"


# -- Prefect


def test_an_api_without_authentication_is_refused(prefect_api: dict[str, str]) -> None:
    url = prefect_api["PREFECT_API_URL"]
    found = list(preflight.check_api(url, open_is_wanted=False))
    assert [finding.level for finding in found] == ["stop", "stop"]
    assert "is this machine" in found[0].sentence
    assert "answers anybody" in found[1].sentence
    assert not list(preflight.check_api(url, open_is_wanted=True))


def test_a_websocket_that_a_proxy_refuses_is_noted(prefect_api: dict[str, str]) -> None:
    assert not list(preflight.check_websocket())
    with (
        broken_prefect(prefect_api["PREFECT_API_URL"]) as proxy,
        temporary_settings({PREFECT_API_URL: proxy.url}),
    ):
        [found] = preflight.check_websocket()
    assert found.level == "note"
    assert "has to pass WebSocket upgrades" in found.sentence


def test_an_api_with_an_auth_string_is_not_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:password")
    with embedded_prefect(tmp_path) as environment:
        assert not preflight.is_open(environment["PREFECT_API_URL"])


def test_an_address_of_no_api_is_an_error(prefect_api: dict[str, str]) -> None:
    url = f"{prefect_api['PREFECT_API_URL']}/elsewhere"
    found = list(preflight.check_api(url, open_is_wanted=False))
    assert "does not answer: HTTP Error 404" in found[-1].sentence


def test_an_api_that_does_not_answer_is_an_error() -> None:
    found = list(preflight.check_api("http://192.0.2.1.invalid/api", open_is_wanted=False))
    assert [finding.level for finding in found] == ["stop"]
    assert "does not answer" in found[0].sentence


def test_a_work_pool_of_another_environment_or_type_is_refused() -> None:
    pools = ["first", "second"]
    state = {"pool_type_0": "ecs", "pool_owner_0": "dev", "pool_type_1": "process"}
    found = list(preflight.check_pools("prod", state, pools))
    assert [finding.level for finding in found] == ["stop", "stop"]
    assert "second is of the type process" in found[0].sentence
    assert "The work pool first belongs to dev" in found[1].sentence
    [finding] = preflight.check_pools("prod", {"deployment_owner": "dev"}, [])
    assert "The deployment create-batches belongs to dev" in finding.sentence
    assert not list(preflight.check_pools("dev", {"pool_type_0": "ecs"}, pools))
