#!/usr/bin/env bash
# From an AWS account with a bucket to a listener that splits exports. See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

POOL=biospex-ecs # prefect.yaml names both
LISTENER_POOL=biospex-ecs-listener
BLOCK=biospex # blocks/saved.py names it
ANSWERS=(AWS_REGION BUCKET BUCKET_KEY_ARN VPC_ID SUBNET_IDS ASSIGN_PUBLIC_IP TRIGGER_QUEUE_ARN
    UPDATES_QUEUE_ARN ALARM_TOPIC_ARN LOG_RETENTION_DAYS PREFECT_API_URL PREFECT_API_KEY_SECRET_ARN
    PREFECT_API_AUTH_STRING_SECRET_ARN NOTIFICATION_BLOCK CPU MEMORY EPHEMERAL_STORAGE CAPACITY
    FLOW_SETTINGS LIFECYCLE_RULES)

usage() {
    cat <<'TEXT'
usage: deploy/deploy.sh [--environment prod|dev|loc] [--yes] [--dry-run] [--open-api] [--help]

Asks what it needs, shows what it will do, asks once, and then creates or updates, in this order:
the AWS stack, the image, the work pools, the blocks, the deployments, the worker and the listener's
run. Before that it checks every answer (deploy/answers.py) and the account (deploy/preflight.py), and
stops where going on would fail or do harm.

  --environment E  prod, dev or loc; they differ in names only
  --yes            ask nothing: the answers of the last time, else what is offered
  --dry-run        look, and print each command that would change something; change nothing
  --open-api       go on with a Prefect API that is on this machine or that anybody may use;
                   whoever reaches such a one can run what he likes in the roles of the tasks
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
    environment='' yes='' dry_run='' open_api=''
    while (($#)); do
        case $1 in
            --environment) environment=${2:?one of prod, dev, loc} && shift ;;
            --yes) yes=1 ;;
            --dry-run) dry_run=1 ;;
            --open-api) open_api=--open-api ;;
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
    no_account=''
    .venv/bin/python -m deploy.preflight region "$AWS_REGION" || no_account=1
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
    step '4, work pools' 'See the lines above.'
    create_pools
    export BIOSPEX_ENVIRONMENT=$environment # a tag of every run
    [[ " $FLOW_SETTINGS " =~ \ DOCS_URL=([^ ]+)\  ]] && export DOCS_URL=${BASH_REMATCH[1]}
    step '5, blocks' 'See the lines above.'
    save_blocks
    step '6, deployments' 'See the lines above.'
    run .venv/bin/prefect --no-prompt deploy --all
    step '7, worker' "The events of its service say why, and the log ${log_group:-of the stack}:
  aws ecs describe-services --cluster $environment-biospex-batch-creator \\
    --services $environment-biospex-worker --region $AWS_REGION --query 'services[0].events[:5]'"
    start_worker
    step '8, listener' 'Start it by hand: .venv/bin/prefect deployment run listen/listen'
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
    # Else a second build of uncommitted changes would have the first one's tag, and nothing renew.
    [[ $commit != *-dirty ]] || commit+=-$(date -u +%Y%m%dT%H%M%SZ)
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
    ask BUCKET_KEY_ARN 'KMS key of the bucket (ARN; empty: none of its own)' \
        "${BUCKET_KEY_ARN-$(preflight bucket-key "$BUCKET" 2>/dev/null || given BucketKeyArn || true)}"
    ask VPC_ID 'VPC' "${VPC_ID:-$(output VpcId || default_vpc || true)}"
    ask SUBNET_IDS 'Subnets, at most 3, each in another zone' \
        "${SUBNET_IDS:-$(output SubnetIds || subnets || true)}"
    SUBNET_IDS=$(preflight order "$(output SubnetIds || true)" "$SUBNET_IDS")
    ask ASSIGN_PUBLIC_IP 'Public addresses (ENABLED; DISABLED in subnets with a NAT)' \
        "${ASSIGN_PUBLIC_IP:-$(given AssignPublicIp || echo ENABLED)}"
    ask_queue TRIGGER_QUEUE_ARN Trigger TriggerQueueArn "$environment-batch-trigger"
    ask_queue UPDATES_QUEUE_ARN Callback UpdatesQueueArn "$environment-batch-update"
    ask ALARM_TOPIC_ARN 'SNS topic for alarms (ARN; empty, not in prod: alarms are only shown)' \
        "${ALARM_TOPIC_ARN-$(given AlarmTopicArn || true)}"
    ask LOG_RETENTION_DAYS 'Days that CloudWatch keeps logs' \
        "${LOG_RETENTION_DAYS:-$(given LogRetentionDays || echo 90)}"
    ask PREFECT_API_URL 'Prefect API' "${PREFECT_API_URL:-$(preflight api-url)}"
    export PREFECT_API_URL
    ask_secret PREFECT_API_KEY PrefectApiKeySecretArn 'a key of Prefect Cloud'
    ask_secret PREFECT_API_AUTH_STRING PrefectApiAuthStringSecretArn 'the auth string of a server'
    ask NOTIFICATION_BLOCK 'Notify of failed exports by (slack-webhook/NAME; empty: by nothing)' \
        "${NOTIFICATION_BLOCK-}"
    ask CPU 'CPU of an export (1024 is one core)' "${CPU:-2048}"
    ask MEMORY 'Memory of an export (MiB)' "${MEMORY:-4096}"
    old_disk=${EPHEMERAL_STORAGE-}
    ask EPHEMERAL_STORAGE 'Disk of an export (GiB, 21 to 200)' "${EPHEMERAL_STORAGE:-100}"
    ask CAPACITY 'Capacity (FARGATE or FARGATE_SPOT)' "${CAPACITY:-FARGATE}"
    ask FLOW_SETTINGS "Settings of the flows (BATCH_SIZE=1000 …, see README)" "${FLOW_SETTINGS-}"
    bucket_has_rules=1
    if aws s3api get-bucket-lifecycle-configuration --bucket "$BUCKET" >"$work/rules" 2>&1; then
        LIFECYCLE_RULES=no
    elif grep -q NoSuchLifecycleConfiguration "$work/rules"; then
        bucket_has_rules=''
        ask LIFECYCLE_RULES 'The bucket has no lifecycle rules; put in deploy/lifecycle.json' \
            "${LIFECYCLE_RULES:-no}"
    fi
}

# ask_queue VARIABLE WHAT PARAMETER NAME: the one that was there before the stack is kept.
ask_queue() {
    local default=''
    if [[ $stack_exists ]]; then
        default=$(given "$3") || default=''
    elif [[ ! ${!1+given} && ! $no_account ]]; then
        default=$(preflight queue "$4") || exit
    fi
    ask "$1" "$2 queue (ARN; empty: the stack's $4)" "${!1-$default}"
}

# ask_secret VARIABLE PARAMETER WHAT
ask_secret() {
    local name=$1_SECRET_ARN
    ask "$name" "Secret with $3 (ARN; empty: none)" "${!name-$(given "$2" || true)}"
}

preflight() { .venv/bin/python -m deploy.preflight "$@"; }

look_at_stack() {
    stack_exists=''
    : >"$work/stack"
    [[ ! $no_account ]] || return 0
    preflight stack "$stack" >"$work/stack" || exit
    [[ ! -s $work/stack ]] || stack_exists=1
}

# What the stack was given and has put out; both fail if there is no such thing.
given() { line_of "$work/stack" "given_$1"; }
output() { line_of "$work/stack" "output_$1"; }

# line_of FILE NAME: the value of the line NAME=VALUE
line_of() {
    grep -q "^$2=" "$1" && sed -n "s/^$2=//p" "$1"
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

# -- the plan

plan() {
    local verb=create pools="create or update"
    [[ ! $stack_exists ]] || verb=update
    cat <<TEXT

Environment $environment: account $account, $AWS_REGION, Prefect at $PREFECT_API_URL
  1. check        bucket $BUCKET, network, quotas, old Lambda, Prefect
  2. stack        $verb $stack: queues, EFS, image repository, cluster, roles, alarms
  3. image        build $commit with $docker, push it
  4. work pools   $pools $POOL: $CAPACITY, $CPU CPU units, $MEMORY MiB, $EPHEMERAL_STORAGE GiB
                  and $LISTENER_POOL
  5. blocks       save $BLOCK, if there are none
  6. deployments  create-batches/create-batches and listen/listen, with what brings the listener back
  7. worker       of that image, as a service in the stack
  8. listener     start a run, or one that takes over if something has changed
TEXT
    [[ $LIFECYCLE_RULES != y* ]] || echo "     with 2: deploy/lifecycle.json for the bucket"
    [[ $commit != *-dirty* ]] || echo "NOTE: uncommitted changes will be in the image."
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
    local failed='' name
    for name in "${ANSWERS[@]}"; do printf '%s=%s\n' "$name" "${!name}"; done >"$work/answers"
    .venv/bin/python -m deploy.answers --environment "$environment" --stack "$stack" \
        --trigger-queue-arn "$(output TriggerQueueArn || true)" \
        --subnets-of-the-stack "$(output SubnetIds || true)" ${open_api:+"$open_api"} \
        "$work/answers" || failed=1
    preflight prefect --environment "$environment" --block "$BLOCK" ${open_api:+"$open_api"} \
        --notification-block "$NOTIFICATION_BLOCK" "$POOL" "$LISTENER_POOL" \
        >"$work/prefect" || failed=1
    [[ ! $failed ]] || fail 'What begins with "stop" has to be put right first.'
    ui=$(line_of "$work/prefect" ui) || ui=''
    listener=$(line_of "$work/prefect" listener) || listener=''
}

create_stack() {
    trigger_key=$(preflight key-of "$TRIGGER_QUEUE_ARN")
    updates_key=$(preflight key-of "$UPDATES_QUEUE_ARN")
    secret_key=$(preflight key-of "${PREFECT_API_KEY_SECRET_ARN:-$PREFECT_API_AUTH_STRING_SECRET_ARN}")
    # The worker stays as it is until pools and deployments are new; the first has no image yet.
    deploy_stack "$(given WorkerImage || true)"
    # Whoever means to remove it says so twice: docs/operations.md, "Removing it".
    run protect "$stack"
    if [[ ! $bucket_has_rules && $LIFECYCLE_RULES == y* ]]; then
        run aws s3api put-bucket-lifecycle-configuration --bucket "$BUCKET" \
            --lifecycle-configuration file://deploy/lifecycle.json
    fi
    [[ ! $TRIGGER_QUEUE_ARN ]] || redrive
}

# Who may not switch it on deploys all the same, and reads that.
protect() {
    aws cloudformation update-termination-protection --enable-termination-protection \
        --stack-name "$1" >/dev/null || echo "note: the stack $1 has no termination protection."
}

# deploy_stack IMAGE-OF-THE-WORKER
deploy_stack() {
    run aws cloudformation deploy --stack-name "$stack" --template-file deploy/stack.yaml \
        --capabilities CAPABILITY_IAM --no-fail-on-empty-changeset --parameter-overrides \
        "Environment=$environment" "BucketName=$BUCKET" "BucketKeyArn=$BUCKET_KEY_ARN" \
        "VpcId=$VPC_ID" "SubnetIds=$SUBNET_IDS" "AssignPublicIp=$ASSIGN_PUBLIC_IP" \
        "TriggerQueueArn=$TRIGGER_QUEUE_ARN" "UpdatesQueueArn=$UPDATES_QUEUE_ARN" \
        "TriggerQueueKeyArn=$trigger_key" "UpdatesQueueKeyArn=$updates_key" \
        "SecretKeyArn=$secret_key" \
        "AlarmTopicArn=$ALARM_TOPIC_ARN" "LogRetentionDays=$LOG_RETENTION_DAYS" \
        "PrefectApiUrl=$PREFECT_API_URL" "PrefectApiKeySecretArn=$PREFECT_API_KEY_SECRET_ARN" \
        "PrefectApiAuthStringSecretArn=$PREFECT_API_AUTH_STRING_SECRET_ARN" "WorkerImage=$1"
    [[ $dry_run ]] || look_at_stack
}

# A trigger queue of before that gives up on nothing redrives to the stack's dead-letter queue.
redrive() {
    local url policy dead=DEAD-LETTER-QUEUE
    url=$(aws sqs get-queue-url --queue-name "${TRIGGER_QUEUE_ARN##*:}" --query QueueUrl --output text)
    policy=$(aws sqs get-queue-attributes --queue-url "$url" --attribute-names RedrivePolicy \
        --query Attributes.RedrivePolicy --output text)
    [[ $policy == None || ! $policy ]] || return 0
    [[ ! $stack_exists ]] || dead=$(output DeadLetterQueueArn)
    printf '{"RedrivePolicy": "{\\"deadLetterTargetArn\\": \\"%s\\", \\"maxReceiveCount\\": 10}"}' \
        "$dead" >"$work/redrive.json"
    run aws sqs set-queue-attributes --queue-url "$url" --attributes "file://$work/redrive.json"
}

push_image() {
    local repository=REPOSITORY
    [[ ! $stack_exists ]] || repository=$(output RepositoryUri)
    image=$repository:$commit
    if [[ $stack_exists && $commit != *-dirty* ]] && is_pushed "$repository"; then
        echo "$image is there already."
        return
    fi
    run "$docker" build --platform linux/amd64 ${BASE_IMAGE:+--build-arg "BASE=$BASE_IMAGE"} \
        --tag "$image" .
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

create_pools() {
    changed=''
    [[ ! $stack_exists ]] || aws cloudformation describe-stacks --stack-name "$stack" \
        --query 'Stacks[0].Outputs' --output json >"$work/outputs.json"
    create_pool 0 "$POOL" splitter --cpu "$CPU" --memory "$MEMORY" \
        --ephemeral-storage "$EPHEMERAL_STORAGE" --capacity "$CAPACITY"
    # It waits most of the time, and for good: little of everything, and not on Spot.
    create_pool 1 "$LISTENER_POOL" listener --cpu 256 --memory 1024 --ephemeral-storage 21
}

# create_pool NUMBER NAME KIND OPTION...
create_pool() {
    local number=$1 pool=$2 kind=$3 template=$work/$3.json setting settings=()
    shift 3
    for setting in $FLOW_SETTINGS; do settings+=(--env "$setting"); done
    [[ ! $stack_exists ]] || .venv/bin/python -m deploy.job_template --pool "$kind" \
        --image "$image" "$@" ${settings[@]+"${settings[@]}"} "$work/outputs.json" >"$template"
    if ! line_of "$work/prefect" "pool_type_$number" >/dev/null; then
        changed=1
        run .venv/bin/prefect --no-prompt work-pool create --type ecs \
            --base-job-template "$template" "$pool"
    elif [[ $commit != *-dirty* && -s $template ]] && preflight same "$pool" "$template"; then
        echo "$pool is as it should be."
    else
        changed=1
        run .venv/bin/prefect --no-prompt work-pool update --base-job-template "$template" "$pool"
    fi
}

# On ECS the task's role gives the credentials: none of this shell may get into the block. Of the
# task's disk an archive may take a third, its images the other; EFS, for larger ones, costs more.
save_blocks() {
    if line_of "$work/prefect" blocks_are_saved >/dev/null; then
        echo "The blocks are there already and stay as they are."
        [[ ! $old_disk || $old_disk == "$EPHEMERAL_STORAGE" ]] ||
            run .venv/bin/python -m deploy.disk "$old_disk" "$EPHEMERAL_STORAGE"
        return
    fi
    run env -u AWS_ACCESS_KEY_ID -u AWS_SECRET_ACCESS_KEY -u AWS_SESSION_TOKEN -u AWS_PROFILE \
        -u AWS_ENDPOINT_URL EFS_PATH=/efs/batch \
        MAX_TMP_SIZE=$((EPHEMERAL_STORAGE * 1024 ** 3 / 3)) .venv/bin/python -m blocks.register
}

start_worker() {
    deploy_stack "$image"
    [[ ! $NOTIFICATION_BLOCK || $(line_of "$work/prefect" has_notice) ]] || add_notice
}

# The automation that tells somebody of each export that fails.
add_notice() {
    preflight notice "$environment" "$NOTIFICATION_BLOCK" >"$work/notice.json"
    run .venv/bin/prefect --no-prompt automation create --from-file "$work/notice.json"
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

Worker, listener and alarms: CloudWatch, dashboard $environment-biospex-batch-creator
Who takes triggers (one, and only one): .venv/bin/python -m deploy.preflight consumers \\
  $(output TriggerQueueArn)

A first export, of an archive that is in the bucket:
  AWS_REGION=$AWS_REGION PREFECT_API_URL=$PREFECT_API_URL \\
    TRIGGER_QUEUE_URL=$(output TriggerQueueUrl) \\
    UPDATES_QUEUE_URL=$(output UpdatesQueueUrl) \\
    make submit ANSWER=1 ARCHIVE=s3://$BUCKET/export/NAME.zip
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
