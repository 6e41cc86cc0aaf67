#!/usr/bin/env bash
# Deploys the batch creator to an AWS account that has a bucket. See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

POOLS=(biospex-ecs biospex-ecs-listener) # prefect.yaml names both
BLOCK=biospex                            # blocks/saved.py names it
ANSWERS=(SHAPE AWS_REGION BUCKET BUCKET_KEY_ARN VPC_ID SUBNET_IDS ASSIGN_PUBLIC_IP TRIGGER_QUEUE_ARN
    UPDATES_QUEUE_ARN ALARM_TOPIC_ARN LOG_RETENTION_DAYS PREFECT_API_URL PREFECT_API_KEY_SECRET_ARN
    PREFECT_API_AUTH_STRING_SECRET_ARN NOTIFICATION_BLOCK CPU MEMORY EPHEMERAL_STORAGE CAPACITY
    FLOW_SETTINGS LIFECYCLE_RULES)

usage() {
    cat <<'TEXT'
usage: deploy/deploy.sh [--environment prod|dev|loc] [--shape pools|single] [--yes] [--dry-run]
                        [--open-api] [--help]

Asks questions, shows a plan, asks for a confirmation, and then creates or updates these, in this
order: the AWS stack, the image, the work pools, the blocks, the deployments, the worker and the
listener's run. First it checks every answer (deploy/answers.py) and the account
(deploy/preflight.py), and stops if a later step would fail or do harm.

  --environment E  prod, dev or loc; they differ in names only
  --shape S        pools: a worker starts a task for the listener and for each export;
                   single: one task runs everything, which costs less (docs/costs.md)
  --yes            ask nothing; take the last answers, or else the defaults
  --dry-run        check, and print each command that would change something; change nothing
  --open-api       accept a Prefect API on this machine, or one without authentication; anybody who
                   reaches such an API can run code in the roles of the tasks
  --help           print this text

Run it again at any time: to upgrade (it builds the checked-out commit), to change an answer, or
after an error. It keeps your answers in deploy/ENVIRONMENT.env and offers them the next time. Keys
and tokens are not among them: it finds AWS as the aws CLI does (AWS_PROFILE), and the key for
Prefect in PREFECT_API_KEY or in the profile of `prefect cloud login`.

Each environment needs a Prefect API of its own, a server or a workspace: pools, deployments and
blocks have the same names in all three.

The bucket must exist. Saved blocks are not changed, so changes made in the Prefect UI persist. The
bucket gets lifecycle rules only if it has none.
TEXT
}

main() {
    environment='' wanted_shape='' yes='' dry_run='' open_api='' number=0
    while (($#)); do
        case $1 in
            --environment) environment=${2:?one of prod, dev, loc} && shift ;;
            --shape) wanted_shape=${2:?pools or single} && shift ;;
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

    step='tools and credentials' hint='Install the missing tool, or sign in to AWS.'
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

    step check 'Nothing has been changed so far.'
    check
    step stack "The events of the stack $stack say why:
  aws cloudformation describe-stack-events --stack-name $stack --region $AWS_REGION
A stack whose first creation failed (ROLLBACK_COMPLETE) has to be deleted before the next try."
    create_stack
    step image "See the output of $docker above."
    push_image
    if [[ $SHAPE != single ]]; then
        step 'work pools' 'See the lines above.'
        create_pools
    fi
    export BIOSPEX_ENVIRONMENT=$environment # a tag of every run
    [[ " $FLOW_SETTINGS " =~ \ DOCS_URL=([^ ]+)\  ]] && export DOCS_URL=${BASH_REMATCH[1]}
    step blocks 'See the lines above.'
    save_blocks
    if [[ $SHAPE != single ]]; then
        step deployments 'See the lines above.'
        run .venv/bin/prefect --no-prompt deploy --all
    fi
    step "$service" "The events of its service say why, and the log ${log_group:-of the stack}:
  aws ecs describe-services --cluster $environment-biospex-batch-creator \\
    --services $environment-biospex-worker --region $AWS_REGION --query 'services[0].events[:5]'"
    start_service
    if [[ $SHAPE != single ]]; then
        step listener 'Start it by hand: .venv/bin/prefect deployment run listen/listen'
        start_listener
    fi
    step=''
    next
}

# -- tools, answers and the existing stack

find_tools() {
    [[ -x .venv/bin/python ]] || make setup
    PATH=$PATH:$PWD/.venv/bin # an aws CLI, if the machine has none
    docker=$(command -v docker || command -v podman) || fail 'There is neither docker nor podman.'
    docker=$(basename "$docker")
    commit=$(git describe --always --dirty --abbrev=40 --exclude='*')
    # Each build of uncommitted changes needs a tag of its own, or the service would not change.
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
    [[ $yes ]] || echo "Enter takes the default in brackets, - leaves the answer empty."
    look_at_stack
    local old_shape=${SHAPE:-pools}
    ask SHAPE 'Shape (pools: a task for each export; single: one task for everything)' \
        "${wanted_shape:-${SHAPE:-$(given Shape || echo pools)}}"
    [[ $SHAPE == "$old_shape" ]] || unset CPU MEMORY EPHEMERAL_STORAGE # another task, another size
    service=worker
    [[ $SHAPE != single ]] || service=service
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
    old_disk=${EPHEMERAL_STORAGE-}
    if [[ $SHAPE == single ]]; then
        ask_size 'the task' 512 2048 21
        CAPACITY=FARGATE
    else
        ask_size 'an export' 2048 4096 100
        ask CAPACITY 'Capacity (FARGATE or FARGATE_SPOT)' "${CAPACITY:-FARGATE}"
    fi
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

# ask_size WHAT CPU MEMORY DISK
ask_size() {
    ask CPU "CPU of $1 (1024 is one core)" "${CPU:-$2}"
    ask MEMORY "Memory of $1 (MiB)" "${MEMORY:-$3}"
    ask EPHEMERAL_STORAGE "Disk of $1 (GiB, 21 to 200)" "${EPHEMERAL_STORAGE:-$4}"
}

# ask_queue VARIABLE WHAT PARAMETER NAME: offers an existing queue, if there is no stack yet.
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

# A parameter and an output of the stack; both fail if the stack has none of that name.
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
    local verb=create size="$CPU CPU units, $MEMORY MiB, $EPHEMERAL_STORAGE GiB" count=0 line
    [[ ! $stack_exists ]] || verb=update
    printf '\nEnvironment %s: account %s, %s, Prefect at %s\n' \
        "$environment" "$account" "$AWS_REGION" "$PREFECT_API_URL"
    local lines=(
        "check        bucket $BUCKET, network, quotas, old Lambda, Prefect"
        "stack        $verb $stack: queues, EFS, image repository, cluster, roles, alarms"
        "image        build $commit with $docker, push it"
    )
    local blocks="blocks       save $BLOCK, if there are none"
    if [[ $SHAPE == single ]]; then
        lines+=("$blocks" "service      one task of that image for listener and exports: $size")
    else
        lines+=(
            "work pools   create or update ${POOLS[0]}: $CAPACITY, $size
                  and ${POOLS[1]}"
            "$blocks"
            "deployments  create-batches/create-batches, listen/listen and the listener's automations"
            "worker       a service of that image"
            "listener     start a run, or one that takes over if something has changed"
        )
    fi
    for line in "${lines[@]}"; do printf '  %d. %s\n' $((++count)) "$line"; done
    [[ $LIFECYCLE_RULES != y* ]] || echo "     with 2: deploy/lifecycle.json for the bucket"
    [[ $commit != *-dirty* ]] || echo "NOTE: the image will have uncommitted changes."
    [[ ! $dry_run ]] || echo "Dry run: a + marks each command that would change something."
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
    [[ $SHAPE != single ]] || POOLS=()
    preflight prefect --environment "$environment" --block "$BLOCK" ${open_api:+"$open_api"} \
        --notification-block "$NOTIFICATION_BLOCK" ${POOLS[@]+"${POOLS[@]}"} \
        >"$work/prefect" || failed=1
    [[ ! $failed ]] || fail 'Correct each line that begins with "stop", then try again.'
    ui=$(line_of "$work/prefect" ui) || ui=''
    listener=$(line_of "$work/prefect" listener) || listener=''
    [[ ! $listener || $(given Shape || echo "$SHAPE") == "$SHAPE" ]] ||
        fail "The shape changes: cancel the run listen and wait until no export runs, then try again."
}

create_stack() {
    trigger_key=$(preflight key-of "$TRIGGER_QUEUE_ARN")
    updates_key=$(preflight key-of "$UPDATES_QUEUE_ARN")
    secret_key=$(preflight key-of "${PREFECT_API_KEY_SECRET_ARN:-$PREFECT_API_AUTH_STRING_SECRET_ARN}")
    # The service keeps its image until pools and deployments are new. A new stack has no image yet.
    deploy_stack "$(given WorkerImage || true)"
    # docs/deploying.md, "Removing it"
    run protect "$stack"
    if [[ ! $bucket_has_rules && $LIFECYCLE_RULES == y* ]]; then
        run aws s3api put-bucket-lifecycle-configuration --bucket "$BUCKET" \
            --lifecycle-configuration file://deploy/lifecycle.json
    fi
    [[ ! $TRIGGER_QUEUE_ARN ]] || redrive
}

# A missing right to do this does not stop the deployment.
protect() {
    aws cloudformation update-termination-protection --enable-termination-protection \
        --stack-name "$1" >/dev/null || echo "note: the stack $1 has no termination protection."
}

# deploy_stack IMAGE-OF-THE-SERVICE
deploy_stack() {
    local single=()
    [[ $SHAPE != single ]] || single=("Cpu=$CPU" "Memory=$MEMORY"
        "EphemeralStorage=$EPHEMERAL_STORAGE" "FlowSettings=$FLOW_SETTINGS")
    run aws cloudformation deploy --stack-name "$stack" --template-file deploy/stack.yaml \
        --capabilities CAPABILITY_IAM --no-fail-on-empty-changeset --parameter-overrides \
        "Environment=$environment" "BucketName=$BUCKET" "BucketKeyArn=$BUCKET_KEY_ARN" \
        "VpcId=$VPC_ID" "SubnetIds=$SUBNET_IDS" "AssignPublicIp=$ASSIGN_PUBLIC_IP" \
        "TriggerQueueArn=$TRIGGER_QUEUE_ARN" "UpdatesQueueArn=$UPDATES_QUEUE_ARN" \
        "TriggerQueueKeyArn=$trigger_key" "UpdatesQueueKeyArn=$updates_key" \
        "SecretKeyArn=$secret_key" \
        "AlarmTopicArn=$ALARM_TOPIC_ARN" "LogRetentionDays=$LOG_RETENTION_DAYS" \
        "PrefectApiUrl=$PREFECT_API_URL" "PrefectApiKeySecretArn=$PREFECT_API_KEY_SECRET_ARN" \
        "PrefectApiAuthStringSecretArn=$PREFECT_API_AUTH_STRING_SECRET_ARN" "WorkerImage=$1" \
        "Shape=$SHAPE" ${single[@]+"${single[@]}"}
    [[ $dry_run ]] || look_at_stack
}

# Gives a kept trigger queue without a redrive policy the stack's dead-letter queue.
redrive() {
    local url policy dead=DEAD-LETTER-QUEUE
    url=$(aws sqs get-queue-url --queue-name "${TRIGGER_QUEUE_ARN##*:}" --query QueueUrl --output text)
    policy=$(aws sqs get-queue-attributes --queue-url "$url" --attribute-names RedrivePolicy \
        --query Attributes.RedrivePolicy --output text)
    [[ $policy == None || ! $policy ]] || return 0
    [[ ! $stack_exists ]] || dead=$(output DeadLetterQueueArn)
    printf '{"RedrivePolicy": "{\\"deadLetterTargetArn\\": \\"%s\\", \\"maxReceiveCount\\": 1000}"}' \
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
    create_pool 0 "${POOLS[0]}" splitter --cpu "$CPU" --memory "$MEMORY" \
        --ephemeral-storage "$EPHEMERAL_STORAGE" --capacity "$CAPACITY"
    # The listener mostly waits, and runs all the time: a small task, and not on Spot.
    create_pool 1 "${POOLS[1]}" listener --cpu 256 --memory 1024 --ephemeral-storage 21
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
        echo "$pool is up to date."
    else
        changed=1
        run .venv/bin/prefect --no-prompt work-pool update --base-job-template "$template" "$pool"
    fi
}

# The archive takes a third of a task's disk and its images two thirds; EFS, for larger archives,
# costs more. In the shape single two exports share the disk.
threshold() {
    local exports=1
    [[ $SHAPE != single ]] || exports=2
    echo $((EPHEMERAL_STORAGE * 1024 ** 3 / 3 / exports))
}

# The task's role has the rights on ECS, so this shell's credentials must not get into the block.
save_blocks() {
    if line_of "$work/prefect" blocks_are_saved >/dev/null; then
        echo "The blocks exist already and are not changed."
        [[ ! $old_disk || $old_disk == "$EPHEMERAL_STORAGE" ]] ||
            echo "note: the disk was $old_disk GiB. For the new one set Threshold to $(threshold) in the" \
                "block biospex-workspace/$BLOCK."
        return
    fi
    run env -u AWS_ACCESS_KEY_ID -u AWS_SECRET_ACCESS_KEY -u AWS_SESSION_TOKEN -u AWS_PROFILE \
        -u AWS_ENDPOINT_URL EFS_PATH=/efs/batch MAX_TMP_SIZE="$(threshold)" \
        .venv/bin/python -m blocks.register
}

start_service() {
    deploy_stack "$image"
    [[ ! $NOTIFICATION_BLOCK || $(line_of "$work/prefect" has_notice) ]] || add_notice
}

# Creates the automation that notifies of each failed export.
add_notice() {
    preflight notice "$environment" "$NOTIFICATION_BLOCK" >"$work/notice.json"
    run .venv/bin/prefect --no-prompt automation create --from-file "$work/notice.json"
}

start_listener() {
    # A scheduled run will start with the new pool; a running one has the old one's settings.
    if [[ $listener == scheduled || ($listener && ! $changed) ]]; then
        echo "The listener is $listener."
        return
    fi
    run .venv/bin/prefect deployment run listen/listen
}

next() {
    [[ ! $dry_run ]] || { echo && echo 'Nothing was changed.' && return; }
    cat <<TEXT

Done. See $ui/deployments

Worker, listener and alarms: CloudWatch, dashboard $environment-biospex-batch-creator
Consumers of the trigger queue (there must be exactly one): .venv/bin/python -m deploy.preflight consumers \\
  $(output TriggerQueueArn)

A first export, of an archive that is in the bucket:
  AWS_REGION=$AWS_REGION PREFECT_API_URL=$PREFECT_API_URL \\
    TRIGGER_QUEUE_URL=$(output TriggerQueueUrl) \\
    UPDATES_QUEUE_URL=$(output UpdatesQueueUrl) \\
    make submit ANSWER=1 ARCHIVE=s3://$BUCKET/export/NAME.zip
TEXT
}

# -- output

# step NAME HINT
step() {
    step="$((++number)), $1" hint=$2
    echo "== $step"
}

# Prints a command as one could type it, and runs it unless this is a dry run.
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
