#!/usr/bin/env bash
# From an AWS account with a bucket to a listener that splits exports. See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

POOL=biospex-ecs # prefect.yaml names it
BLOCK=biospex    # blocks/saved.py names it
ANSWERS=(AWS_REGION BUCKET VPC_ID SUBNET_IDS UPDATES_QUEUE_ARN ALARM_TOPIC_ARN LOG_RETENTION_DAYS
    PREFECT_API_URL CPU MEMORY EPHEMERAL_STORAGE CAPACITY FLOW_SETTINGS LIFECYCLE_RULES)

usage() {
    cat <<'TEXT'
usage: deploy/deploy.sh [--environment prod|dev|loc] [--yes] [--dry-run] [--help]

Asks what it needs, shows what it will do, asks once, and then creates or updates, in this order:
the AWS stack, the image, the work pool, the blocks, the deployments and the listener's run.

  --environment E  prod, dev or loc; they differ in names only
  --yes            ask nothing: the answers of the last time, else what is offered
  --dry-run        look, and print each command that would change something; change nothing
  --help           this text

It may be run again at any time: to upgrade (it builds what is checked out), to change an answer,
or after it stopped at an error. Your answers are kept in deploy/ENVIRONMENT.env and offered the
next time. Keys and tokens are not among them: AWS is found as the aws CLI finds it (AWS_PROFILE),
a key for Prefect in PREFECT_API_KEY or the profile of `prefect cloud login`.

Each environment needs a Prefect API of its own, a server or a workspace: the names of pool,
deployments and blocks are the same in all three.

The bucket must exist. Blocks that are saved already are left as they are, so what was changed in
the Prefect UI holds. Rules for the bucket's lifecycle are put only into a bucket that has none.
TEXT
}

main() {
    environment='' yes='' dry_run=''
    while (($#)); do
        case $1 in
            --environment) environment=${2:?one of prod, dev, loc} && shift ;;
            --yes) yes=1 ;;
            --dry-run) dry_run=1 ;;
            --help) usage && exit ;;
            *) usage >&2 && exit 2 ;;
        esac
        shift
    done
    work=$(mktemp -d)
    trap stopped EXIT

    step 'tools and credentials' 'Install what is missing; sign in to AWS.'
    find_tools
    ask environment 'Environment (prod, dev, loc)' "${environment:-prod}"
    [[ $environment =~ ^(prod|dev|loc)$ ]] || fail "There is no environment '$environment'."
    answers=deploy/$environment.env stack=biospex-$environment
    load_answers
    ask AWS_REGION 'AWS region' "${AWS_REGION:-us-east-2}"
    export AWS_REGION AWS_DEFAULT_REGION=$AWS_REGION
    ask_the_rest
    plan
    confirm
    keep_answers

    step '1, check' 'Nothing has been changed so far.'
    check
    step '2, stack' "The events of the stack $stack say why:
  aws cloudformation describe-stack-events --stack-name $stack --region $AWS_REGION
A stack whose first creation failed (ROLLBACK_COMPLETE) has to be deleted before the next try."
    create_stack
    step '3, image' "See the output of $docker above."
    push_image
    step '4, work pool' 'See the lines above.'
    create_pool
    step '5, blocks' 'See the lines above.'
    save_blocks
    step '6, deployments' 'See the lines above.'
    run .venv/bin/prefect --no-prompt deploy --all
    step '7, listener' 'Start it by hand: .venv/bin/prefect deployment run listen/listen'
    start_listener
    step=''
    next
}

# -- what is there, and what is wanted

find_tools() {
    [[ -x .venv/bin/python ]] || make setup
    PATH=$PATH:$PWD/.venv/bin # an aws CLI, if the machine has none
    docker=$(command -v docker || command -v podman) || fail 'There is neither docker nor podman.'
    docker=$(basename "$docker")
    commit=$(git describe --always --dirty --abbrev=40 --exclude='*')
    account=$(aws sts get-caller-identity --region us-east-1 --query Account --output text)
}

load_answers() {
    local name value
    [[ -f $answers ]] || return 0
    while IFS='=' read -r name value; do
        [[ " ${ANSWERS[*]} " != *" $name "* ]] || printf -v "$name" '%s' "$value"
    done <"$answers"
}

keep_answers() {
    local name
    [[ ! $dry_run ]] || return 0
    for name in "${ANSWERS[@]}"; do
        printf '%s=%s\n' "$name" "${!name}"
    done >"$answers"
}

# ask VARIABLE QUESTION DEFAULT
ask() {
    local answer=''
    if [[ ! $yes ]]; then
        read -r -p "$2 [$3]: " answer || fail 'No answer; with --yes nothing is asked.'
    fi
    answer=${answer:-$3}
    [[ $answer != - ]] || answer=''
    printf -v "$1" '%s' "$answer"
}

ask_the_rest() {
    [[ $yes ]] || echo "Enter takes what is in brackets, - leaves it empty."
    look_at_stack
    ask BUCKET 'Bucket with export/ and batch/' "${BUCKET:-$(given BucketName || default_bucket)}"
    ask VPC_ID 'VPC' "${VPC_ID:-$(output VpcId || default_vpc)}"
    [[ $VPC_ID ]] || fail "Which VPC? Of the account: $(vpcs 'Vpcs[].VpcId')"
    ask SUBNET_IDS 'Subnets, at most 3, each in another zone' \
        "${SUBNET_IDS:-$(output SubnetIds || subnets)}"
    ask UPDATES_QUEUE_ARN "Callback queue (ARN; empty: the stack's $environment-batch-update)" \
        "${UPDATES_QUEUE_ARN-$(given UpdatesQueueArn || updates_queue)}"
    ask ALARM_TOPIC_ARN 'SNS topic for alarms (ARN; empty: alarms are only shown)' \
        "${ALARM_TOPIC_ARN-$(given AlarmTopicArn || true)}"
    ask LOG_RETENTION_DAYS 'Days that CloudWatch keeps logs' \
        "${LOG_RETENTION_DAYS:-$(given LogRetentionDays || echo 90)}"
    ask PREFECT_API_URL 'Prefect API' "${PREFECT_API_URL:-$(prefect_api_url)}"
    [[ $PREFECT_API_URL ]] || fail 'The Prefect API is needed, http://HOST:4200/api or so.'
    export PREFECT_API_URL
    ask CPU 'CPU of an export (1024 is one core)' "${CPU:-2048}"
    ask MEMORY 'Memory of an export (MiB)' "${MEMORY:-4096}"
    ask EPHEMERAL_STORAGE 'Disk of an export (GiB, 21 to 200)' "${EPHEMERAL_STORAGE:-100}"
    ask CAPACITY 'Capacity (FARGATE or FARGATE_SPOT)' "${CAPACITY:-FARGATE}"
    [[ $CAPACITY =~ ^FARGATE(_SPOT)?$ ]] || fail "There is no capacity '$CAPACITY'."
    ask FLOW_SETTINGS "Settings of the flows (BATCH_SIZE=1000 …, see README)" "${FLOW_SETTINGS-}"
    bucket_has_rules=1
    if aws s3api get-bucket-lifecycle-configuration --bucket "$BUCKET" >"$work/rules" 2>&1; then
        LIFECYCLE_RULES=no
    elif grep -q NoSuchLifecycleConfiguration "$work/rules"; then
        bucket_has_rules=''
        ask LIFECYCLE_RULES 'The bucket has no lifecycle rules; put in deploy/lifecycle.json' \
            "${LIFECYCLE_RULES:-no}"
    else
        LIFECYCLE_RULES=no
    fi
}

look_at_stack() {
    stack_exists=''
    if aws cloudformation describe-stacks --stack-name "$stack" --query 'Stacks[0]' --output json \
        >"$work/stack.json" 2>"$work/error"; then
        stack_exists=1
    else
        grep -q 'does not exist' "$work/error" || fail "$(<"$work/error")"
    fi
}

# What the stack was given and what it has put out; both fail if there is no stack.
given() { of_stack Parameters "$1"; }
output() { of_stack Outputs "$1"; }

of_stack() {
    [[ $stack_exists ]] && .venv/bin/python -c '
import json, sys
path, kind, name = sys.argv[1:]
print(*[
    entry[f"{kind[:-1]}Value"]
    for entry in json.load(open(path)).get(kind, ())
    if entry[f"{kind[:-1]}Key"] == name
])
' "$work/stack.json" "$1" "$2"
}

default_bucket() {
    case $environment in
        prod) echo biospex-app ;;
        *) echo "biospex-$environment" ;;
    esac
}

default_vpc() {
    vpcs 'Vpcs[?IsDefault].VpcId'
}

vpcs() {
    aws ec2 describe-vpcs --query "$1" --output text
}

subnets() {
    aws ec2 describe-subnets --filters "Name=vpc-id,Values=$VPC_ID" --output text \
        --query 'Subnets[].[AvailabilityZone, SubnetId]' |
        sort | awk '!seen[$1]++ && ++count <= 3 { printf "%s%s", comma, $2; comma = "," }'
}

# A callback queue that was there before the stack.
updates_queue() {
    local url
    url=$(queue_url "$environment-batch-update") || return 0
    aws sqs get-queue-attributes --queue-url "$url" --attribute-names QueueArn \
        --query Attributes.QueueArn --output text
}

queue_url() {
    aws sqs get-queue-url --queue-name "$1" --query QueueUrl --output text 2>/dev/null
}

prefect_api_url() {
    .venv/bin/python -c 'from prefect.settings import PREFECT_API_URL as u; print(u.value() or "")'
}

# -- the plan

plan() {
    local verb=create pool="create or update"
    [[ ! $stack_exists ]] || verb=update
    cat <<TEXT

Environment $environment: account $account, $AWS_REGION, Prefect at $PREFECT_API_URL
  1. check        bucket $BUCKET, Prefect
  2. stack        $verb $stack: queues, EFS, image repository, cluster, roles, alarms
  3. image        build $commit with $docker, push it
  4. work pool    $pool $POOL: $CAPACITY, $CPU CPU units, $MEMORY MiB, $EPHEMERAL_STORAGE GiB
  5. blocks       save $BLOCK, if there are none
  6. deployments  create-batches/create-batches and listen/listen, with what brings the listener back
  7. listener     start a run, or one that takes over if something has changed
TEXT
    [[ $LIFECYCLE_RULES != y* ]] || echo "     with 2: deploy/lifecycle.json for the bucket"
    [[ $commit != *-dirty ]] || echo "NOTE: uncommitted changes will be in the image."
    [[ ! $dry_run ]] || echo "Dry run: a + stands before what would be done; nothing is changed."
    echo
}

confirm() {
    local answer
    [[ ! $yes && ! $dry_run ]] || return 0
    read -r -p 'Go on? [y/N] ' answer
    [[ $answer == [yY]* ]] || { step='' && echo 'Nothing was changed.' && exit; }
}

# -- the steps

check() {
    aws s3api head-bucket --bucket "$BUCKET" >/dev/null ||
        fail "The bucket $BUCKET is not there, or not yours. It is made by BIOSPEX, not here."
    if [[ ! $stack_exists ]] && queue_url "$environment-batch-trigger" >/dev/null; then
        fail "The queue $environment-batch-trigger exists, but not in a stack $stack. CloudFormation
cannot take it over: let its messages be worked off, delete it, wait a minute and run this again."
    fi
    look_at_prefect
    [[ ${pool_type:-ecs} == ecs ]] || fail "The work pool $POOL is of the type $pool_type, not ecs."
    # Two environments on one Prefect API would take each other's pool away.
    local owner
    owner=$(grep -oE '(prod|dev|loc)-batch-trigger' <<<"$pool_template" | head -n 1) || return 0
    [[ $owner == "$environment-batch-trigger" ]] ||
        fail "The work pool $POOL at $PREFECT_API_URL is that of ${owner%%-*}.
Each environment needs a Prefect API of its own."
}

# The pool's type, empty if there is none, and its base job template; whether the blocks are saved;
# whether a listener is scheduled or running; the UI.
look_at_prefect() {
    .venv/bin/python - "$POOL" "$BLOCK" >"$work/pool.json" 2>"$work/error" <<'PYTHON' ||
import json, sys
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_UI_URL
def found(read, *arguments):
    try:
        return read(*arguments)
    except ObjectNotFound:
        return None
with get_client(sync_client=True) as prefect:
    pool = found(prefect.read_work_pool, sys.argv[1])
    block = found(prefect.read_block_document_by_name, sys.argv[2], "biospex-workspace")
    listeners = prefect.read_flow_runs(
        flow_filter=FlowFilter(name={"any_": ["listen"]}),
        flow_run_filter=FlowRunFilter(
            state={"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}}
        ),
    )
print(pool.type if pool else "")
print("yes" if block else "")
states = {run.state_type for run in listeners if run.deployment_id}
print("scheduled" if "SCHEDULED" in states else "running" if states else "")
print(PREFECT_UI_URL.value() or "")
print(json.dumps(pool.base_job_template) if pool else "")
PYTHON
        fail "$PREFECT_API_URL does not answer as it should: $(tail -n 1 "$work/error")"
    {
        read -r pool_type
        read -r blocks_are_saved
        read -r listener
        read -r ui
        read -r pool_template || true
    } <"$work/pool.json"
}

create_stack() {
    run aws cloudformation deploy --stack-name "$stack" --template-file deploy/stack.yaml \
        --capabilities CAPABILITY_IAM --no-fail-on-empty-changeset --parameter-overrides \
        "Environment=$environment" "BucketName=$BUCKET" "VpcId=$VPC_ID" "SubnetIds=$SUBNET_IDS" \
        "UpdatesQueueArn=$UPDATES_QUEUE_ARN" "AlarmTopicArn=$ALARM_TOPIC_ARN" \
        "LogRetentionDays=$LOG_RETENTION_DAYS"
    if [[ ! $bucket_has_rules && $LIFECYCLE_RULES == y* ]]; then
        run aws s3api put-bucket-lifecycle-configuration --bucket "$BUCKET" \
            --lifecycle-configuration file://deploy/lifecycle.json
    fi
    [[ $dry_run ]] || look_at_stack
}

push_image() {
    local repository=REPOSITORY
    [[ ! $stack_exists ]] || repository=$(output RepositoryUri)
    image=$repository:$commit
    if [[ $stack_exists && $commit != *-dirty ]] && is_pushed "$repository"; then
        echo "$image is there already."
        return
    fi
    run "$docker" build --platform linux/amd64 --tag "$image" .
    run sign_in "${repository%%/*}"
    run "$docker" push "$image"
}

sign_in() {
    aws ecr get-login-password | "$docker" login --username AWS --password-stdin "$1"
}

is_pushed() {
    aws ecr describe-images --repository-name "${1#*/}" --image-ids "imageTag=$commit" \
        >/dev/null 2>&1
}

create_pool() {
    local setting settings=()
    for setting in $FLOW_SETTINGS; do settings+=(--env "$setting"); done
    changed=1
    if [[ $stack_exists ]]; then
        .venv/bin/python -c 'import json, sys; print(json.dumps(json.load(sys.stdin)["Outputs"]))' \
            <"$work/stack.json" >"$work/outputs.json"
        .venv/bin/python -m deploy.job_template --image "$image" --cpu "$CPU" --memory "$MEMORY" \
            --ephemeral-storage "$EPHEMERAL_STORAGE" --capacity "$CAPACITY" \
            ${settings[@]+"${settings[@]}"} "$work/outputs.json" >"$work/template.json"
    fi
    if [[ ! $pool_type ]]; then
        run .venv/bin/prefect --no-prompt work-pool create --type ecs \
            --base-job-template "$work/template.json" "$POOL"
    elif [[ $commit != *-dirty ]] && is_as_it_should_be; then
        changed=''
        echo "$POOL is as it should be."
    else
        run .venv/bin/prefect --no-prompt work-pool update \
            --base-job-template "$work/template.json" "$POOL"
    fi
}

is_as_it_should_be() {
    [[ -s $work/template.json ]] && .venv/bin/python -c '
import json, sys
sys.exit(json.load(sys.stdin) != json.load(open(sys.argv[1])))
' "$work/template.json" <<<"$pool_template"
}

# On ECS the task's role gives the credentials: none of this shell may get into the block. Of the
# task's disk an archive may take a third, its images the other; EFS, for larger ones, costs more.
save_blocks() {
    if [[ $blocks_are_saved ]]; then
        echo "The blocks are there already and stay as they are."
        return
    fi
    run env -u AWS_ACCESS_KEY_ID -u AWS_SECRET_ACCESS_KEY -u AWS_SESSION_TOKEN -u AWS_PROFILE \
        -u AWS_ENDPOINT_URL EFS_PATH=/efs/batch \
        MAX_TMP_SIZE=$((EPHEMERAL_STORAGE * 1024 ** 3 / 3)) .venv/bin/python -m blocks.register
}

start_listener() {
    # One that is scheduled will find the pool as it is now; one that runs, as it was.
    if [[ $listener == scheduled || ($listener && ! $changed) ]]; then
        echo "It is $listener."
        return
    fi
    run .venv/bin/prefect deployment run listen/listen
}

next() {
    [[ ! $dry_run ]] || { echo && echo 'Nothing was changed.' && return; }
    cat <<TEXT

Done. See $ui/deployments

A worker has to look after the pool $POOL. Once, in private subnets that reach the internet:
  .venv/bin/prefect-aws ecs-worker deploy-service --work-pool-name $POOL \\
    --stack-name $stack-worker --region $AWS_REGION --docker-image $image \\
    --existing-cluster-identifier $(output ClusterArn) \\
    --existing-vpc-id $VPC_ID --existing-subnet-ids PRIVATE-SUBNETS \\
    --prefect-api-url $PREFECT_API_URL
or on any machine that has AWS credentials:
  $docker run --detach --restart always --env AWS_DEFAULT_REGION=$AWS_REGION \\
    --env PREFECT_API_URL=$PREFECT_API_URL \\
    $image prefect worker start --type ecs --pool $POOL

A first export, of an archive that is in the bucket:
  AWS_REGION=$AWS_REGION PREFECT_API_URL=$PREFECT_API_URL \\
    TRIGGER_QUEUE_URL=$(output TriggerQueueUrl) \\
    UPDATES_QUEUE_URL=$(output UpdatesQueueUrl) \\
    make submit ARCHIVE=s3://$BUCKET/export/NAME.zip
TEXT
}

# -- how it says what it does

step() {
    step=$1 hint=$2
    [[ $step != [0-9]* ]] || echo "== $step"
}

# The command, as it could be typed; and, but for --dry-run, what it does.
run() {
    printf '+'
    printf ' %q' "$@"
    echo
    [[ $dry_run ]] || "$@"
}

fail() {
    echo "$1" >&2
    exit 1
}

stopped() {
    local status=$?
    rm -rf "$work"
    [[ $status == 0 || ! $step ]] || printf '\nStopped at step %s.\n%s\n' "$step" "$hint" >&2
}

main "$@"
