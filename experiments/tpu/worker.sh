#!/usr/bin/env bash
# What job.sh runs over ssh on each worker of a TPU VM, in the home directory.
#
#   worker.sh install BUNDLE [SETUP]   the checkout and its environment; before them the line SETUP
#   worker.sh launch NAME [FLAG...]    python -m experiments.NAME FLAG..., in the background
#   worker.sh status [NAME FLAG...]    none; running; other: a running job, and not the one named;
#                                      lost: launched, and gone without a status; or `ended N`
#   worker.sh follow                   the log, until the job ends
#   worker.sh stop                     ask the job to save and stop; end it after a minute
set -euo pipefail
cd "$HOME"
mkdir -p job

refuse() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# Every process of a job holds the lock, so it is free once they are gone, also after a restart of
# the machine.
running() {
    ! flock --nonblock job/lock true
}

command=$1
shift
case $command in
    install)
        running && refuse "a job is running here: $(<job/command); stop it, or wait for it."
        [[ -z ${2:-} ]] || bash -c "$2"
        git init --quiet reasoning
        git -C reasoning fetch --quiet "$HOME/$1" HEAD
        git -C reasoning checkout --quiet --force --detach FETCH_HEAD
        # Stock images ship Python 3.10 and the package needs 3.11: uv brings a Python of its own.
        # The variable is for images whose pip leaves the system's packages alone.
        if [[ ! -x venv/bin/python ]]; then
            PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
            python3 -m uv venv --quiet --python 3.12 venv
        fi
        python3 -m uv pip install --quiet --python venv/bin/python --editable './reasoning[tpu]'
        echo "installed $(git -C reasoning rev-parse --short HEAD)"
        ;;
    launch)
        [[ -x venv/bin/python ]] || refuse "nothing is installed here; run job.sh install first."
        exec 9>job/lock
        flock --nonblock 9 || refuse "a job is running here: $(<job/command); stop it, or wait."
        rm -f job/status
        printf '%q ' "$@" >job/command
        # A session of its own outlives the ssh connection; it inherits descriptor 9, the lock.
        setsid bash worker.sh run "$@" >>job/log 2>&1 </dev/null &
        echo $! >job/pid
        echo "launched: $(<job/command)"
        ;;
    run) # in the session of `launch`
        cd reasoning
        echo "$(date -u +%FT%TZ) $(<../job/command)"
        # Where another process has the TPU, JAX would go on on the CPU; so named, it must fail.
        ended=0
        JAX_PLATFORMS=tpu,cpu ../venv/bin/python -u -m "experiments.$1" "${@:2}" || ended=$?
        echo "$(date -u +%FT%TZ) ended with status $ended"
        echo "$ended" >../job/status
        ;;
    status)
        if running; then
            if (($# == 0)) || [[ "$(printf '%q ' "$@")" == "$(<job/command)" ]]; then
                echo running
            else
                echo other
            fi
        elif [[ -f job/status ]]; then
            echo "ended $(<job/status)"
        elif [[ -f job/command ]]; then
            echo lost
        else
            echo none
        fi
        ;;
    follow)
        [[ -f job/log ]] || refuse "no job was launched here; run job.sh launch first."
        tail --lines=+1 --follow=name --pid="$(<job/pid)" job/log
        ;;
    stop)
        if running; then
            pkill -TERM --parent "$(<job/pid)" || true
            if ! flock --timeout 60 job/lock true; then
                echo 137 >job/status
                pkill -KILL --session "$(<job/pid)" || true
            fi
        fi
        bash worker.sh status
        ;;
    *) refuse "$command: no such command." ;;
esac
