#!/usr/bin/env bash
# A job on a gcloud TPU VM, asked for as a queued resource; docs/tpu.md tells the whole way.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

usage() {
    cat <<'END'
usage: experiments/tpu/job.sh COMMAND --name=NAME --zone=ZONE [FLAG ...] [-- EXPERIMENT FLAG ...]

commands:
  create   ask for a TPU, unless it is there, and wait until it is ready
  install  copy the last commit to every worker and install it there
  launch   start  python -m experiments.EXPERIMENT FLAG ...  on every worker
  follow   show the log of worker 0 until the job ends
  status   the state of the TPU, and of the job on each worker
  stop     ask the job to save and stop; the same launch goes on
  retry    create, install and launch; again after each preemption, until the job ends by itself
  delete   give the TPU back, with all that is on its disks

flags:
  --name=NAME               the TPU and its queued resource
  --zone=ZONE               such as us-west4-a
  --project=PROJECT         default: gcloud's own
  --accelerator_type=TYPE   for create and retry: such as v5litepod-8
  --runtime_version=IMAGE   for create and retry: such as v2-alpha-tpuv5-lite
  --spot                    for create and retry: cheaper, and may be taken away at any time
  --setup=LINE              for install and retry: a shell line that every worker runs before it
                            installs, such as a mount; it must bear being run again
  --poll=SECONDS            between two looks at the state; default 30
  --dry_run                 print every command, and run none
  --help                    print this

exit status: 0; 1 what was tried has failed; 2 bad input. retry ends with the job's own status: 2 is
a refusal, and is not tried again; neither is a crash. After 75, stopped when asked, it goes on.
END
}

refuse() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

say() {
    [[ -n $dry_run ]] || printf '%s: %s\n' "$name" "$1"
}

# Print a command as a shell would read it.
show() {
    printf '%q' "$1"
    shift
    (($# == 0)) || printf ' %q' "$@"
    printf '\n'
}

run() {
    if [[ -n $dry_run ]]; then show "$@"; else "$@"; fi
}

nap() {
    [[ -n $dry_run ]] || sleep "$poll"
}

# Set `answer` to what a command prints: ASSUMED in a dry run, ABSENT where there is no such thing,
# UNKNOWN where it fails, which may be the network.
ask() { # ASSUMED COMMAND...
    answer=$1
    shift
    if [[ -n $dry_run ]]; then
        show "$@"
        return
    fi
    local errors
    errors=$(mktemp)
    if ! answer=$("$@" 2>"$errors"); then
        if grep -q NOT_FOUND "$errors"; then
            answer=ABSENT
        else
            answer=UNKNOWN
            cat "$errors" >&2
        fi
    fi
    rm "$errors"
}

# Set `state` to the queued resource's; while that is ACTIVE, to what has become of the TPU.
look() {
    local before=${state:-}
    ask "$assumed_state" gcloud compute tpus queued-resources describe "$name" \
        "${where[@]}" '--format=value(state.state)'
    state=$answer
    if [[ $state == ACTIVE ]]; then
        ask READY gcloud compute tpus tpu-vm describe "$name" "${where[@]}" '--format=value(state)'
        case $answer in
            READY) ;;
            PREEMPTED | TERMINATED | ABSENT) state=PREEMPTED ;;
            *) state=$answer ;;
        esac
    fi
    [[ $state == "$before" ]] || say "$state"
}

request() {
    run gcloud compute tpus queued-resources create "$name" --node-id="$name" \
        --accelerator-type="$accelerator_type" --runtime-version="$runtime_version" \
        "${where[@]}" ${spot:+--spot} && assumed_state=ACTIVE
}

remove() {
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

give_up() {
    fail "name=$name: is $state; see why with gcloud compute tpus queued-resources describe $name \
${where[*]}, then delete it and create it again."
}

# The first look, which is not to take a gcloud that cannot work for a moment's trouble.
look_first() {
    look
    [[ $state != UNKNOWN ]] || fail "name=$name: its state cannot be read; mend what gcloud says."
}

create() {
    look_first
    [[ $state != ABSENT ]] || request
    while look; do
        case $state in
            ACTIVE) return ;;
            ABSENT | DELETING | FAILED | PREEMPTED | SUSPENDING | SUSPENDED) give_up ;;
        esac
        nap
    done
}

# The commit as a file: workers need no access to where the repository is kept, and a run's
# config.json still names its revision.
pack() {
    local changed
    if [[ -z $dry_run ]]; then
        changed=$(git status --porcelain -- reasoning experiments setup.py)
        [[ -z $changed ]] || refuse "$(sed -n '1s/^...//p' <<<"$changed"): is not committed, and \
the workers get the last commit; commit or stash it."
    fi
    run mkdir -p build
    run git bundle create --quiet "build/$name.bundle" HEAD
}

# ssh hands its command to a shell on the worker: every argument is quoted for that.
remote() { # ARGUMENT...
    printf 'bash worker.sh'
    printf ' %q' "$@"
}

workers() { # all|0 ARGUMENT...
    local which=$1
    shift
    run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$which" \
        --command="$(remote "$@")"
}

ship() {
    run gcloud compute tpus tpu-vm scp "build/$name.bundle" experiments/tpu/worker.sh "$name:" \
        "${where[@]}" --worker=all && workers all install "$name.bundle" ${setup:+"$setup"}
}

launch() {
    workers all launch "${experiment[@]}" && assumed_job="ended 0"
}

# Set `job` to what the workers say together: one that is gone or has crashed stands for all.
look_job() {
    local status
    status=$(remote status "${experiment[@]}")
    ask "$assumed_job" gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all \
        --command="if [ -f worker.sh ]; then $status; else echo none; fi"
    # In the order of what stands for all; a worker where nothing was launched is a lost one if
    # something was on another.
    local lines
    lines=$(grep -xE 'none|running|other|lost|ended [0-9]+' <<<"$answer" | sort -u || true)
    case $lines in
        "") job=unknown ;;
        *other*) job=other ;;
        none) job=none ;;
        *none* | *lost*) job=lost ;;
        *) job=$(grep -vx -e running -e 'ended 0' -e 'ended 75' <<<"$lines" | head -n 1 || true) ;;
    esac
    if [[ -z $job ]]; then
        case $lines in
            *running*) job=running ;;
            *75*) job="ended 75" ;;
            *) job="ended 0" ;;
        esac
    fi
}

# A preemption may show in what it breaks before it shows in the state: only what fails twice, with
# the TPU still there, has failed.
doubted=
doubt() { # WHAT STATUS
    say "$1"
    [[ -z $doubted ]] || exit "$2"
    doubted=yes
}

relaunch() {
    if [[ $job != none ]] && ! workers all stop; then
        doubt "the job cannot be stopped." 1
    elif ! ship; then
        doubt "the installation has failed." 1
    elif ! launch; then
        doubt "the launch has failed." 1
    else
        launched=yes doubted=''
    fi
}

# Each round looks at what is there and takes the next step, so that the same command goes on
# wherever an earlier one was left.
launched=
retry() {
    pack
    look_first
    while true; do
        case $state in
            ABSENT) request || doubt "the TPU cannot be asked for." 1 ;;
            FAILED) give_up ;;
            PREEMPTED | SUSPENDED)
                remove || doubt "the TPU cannot be deleted." 1
                doubted=''
                ;;
            ACTIVE)
                look_job
                [[ $job != "ended 0" || -z $launched ]] || break
                advance
                ;;
        esac
        nap
        look
    done
    say "finished; the TPU is there until job.sh delete."
}

advance() {
    case $job in
        unknown) ;;
        other) fail "name=$name: is running another job; wait for it, or stop it." ;;
        running) launched=yes doubted='' ;;
        none | lost | "ended 75") relaunch ;;
        *)
            # The end of an earlier launch says nothing: its cause may have been mended.
            if [[ -z $launched ]]; then
                relaunch
            else
                doubt "the job has $job; see job.sh follow." "${job#ended }"
            fi
            ;;
    esac
}

command=${1:-}
case $command in
    create | install | launch | follow | status | stop | retry | delete) shift ;;
    -h | --help) usage && exit ;;
    "") refuse "the command is missing: say one of create, install, launch, follow, status, stop, \
retry, delete; see --help." ;;
    *) refuse "$command: no such command; see --help." ;;
esac

name='' zone='' project='' accelerator_type='' runtime_version=''
spot='' setup='' poll=30 dry_run=''
while (($# > 0)); do
    case $1 in
        --name=* | --zone=* | --project=* | --accelerator_type=* | --runtime_version=* | \
            --setup=* | --poll=*)
            flag=${1%%=*}
            printf -v "${flag#--}" %s "${1#*=}"
            ;;
        --spot) spot=yes ;;
        --dry_run) dry_run=yes ;;
        -h | --help) usage && exit ;;
        --) break ;;
        --name | --zone | --project | --accelerator_type | --runtime_version | --setup | --poll)
            refuse "$1: its value is missing; write $1=VALUE."
            ;;
        *) refuse "$1: no such flag; the experiment and its flags come after -- ; see --help." ;;
    esac
    shift
done

needed="name zone"
case $command in create | retry) needed+=" accelerator_type runtime_version" ;; esac
for flag in $needed; do
    [[ -n ${!flag} ]] || refuse "$flag is missing: say --$flag=VALUE; see --help."
done
[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] || refuse "name=$name: is no name for a TPU; take \
lower-case letters, digits and hyphens, a letter first."
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || refuse "zone=$zone: is no zone; write one such as \
us-west4-a."
[[ $poll =~ ^[0-9]*\.?[0-9]+$ ]] || refuse "poll=$poll: is no number of seconds; write one such \
as 30."

experiment=("${@:2}")
case $command in
    launch | retry)
        (($# > 1)) || refuse "the experiment is missing: say which after --, such as \
-- sft --workdir=/mnt/runs/first."
        [[ $2 =~ ^[a-z_]+$ && -f experiments/$2.py ]] || refuse "experiment=$2: there is no \
experiments/$2.py; name a program of experiments/ after --."
        workdir=
        for ((i = 3; i <= $#; i++)); do
            case ${!i} in
                --workdir=* | -workdir=*) workdir=${!i#*=} ;;
                --workdir | -workdir) refuse "workdir: write it as --workdir=DIR." ;;
            esac
        done
        case $workdir in
            "") refuse "workdir is missing: say where the run is to be written, --workdir=DIR." ;;
            gs://*) refuse "workdir=$workdir: run directories need a file system; mount the bucket \
with --setup, as docs/tpu.md shows, and give the path." ;;
            /*) ;;
            *)
                [[ $command != retry ]] || refuse "workdir=$workdir: is on the disk that goes with \
a preempted TPU; give the path of a mounted directory, such as /mnt/runs/first."
                ;;
        esac
        ;;
    *) (($# == 0)) || refuse "$command takes no experiment; leave out what follows --." ;;
esac

where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")
assumed_state=ABSENT assumed_job=none # what a dry run finds; its own steps change them

case $command in
    create | launch | retry) "$command" ;;
    install) pack && ship ;;
    follow | stop) workers "$([[ $command == stop ]] && echo all || echo 0)" "$command" ;;
    status)
        assumed_state=ACTIVE
        look
        [[ $state != ACTIVE ]] || workers all status
        ;;
    delete) remove ;;
esac
