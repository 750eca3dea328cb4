# Sourced by the sweeps: run_all reads lines of arguments and runs `main.py --resume` with each, JOBS side by side.
#
#   JOBS=4 GPUS="0 1" PYTHON=python sweeps/seeds.sh -d coco
#   JOBS=3 GPUS="0 0 0" sweeps/seeds.sh -d coco               # three runs at a time on one GPU
#   LIST=1 sweeps/seeds.sh -d coco                            # only print the lines (for sweeps/slurm.sh)
#
# A finished run is skipped, an interrupted one continues. A run that fails does not stop the others; it is listed at the end
# with its log, and the sweep's exit status is then 1. Last comes the table of the sweep's runs, with a page beside the
# logs.

set -fuo pipefail # f: no value becomes names of files
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export JOBS=${JOBS:-1} GPUS=${GPUS:-0} LOGS=${LOGS:-results/logs}
export PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
SEEDS=${SEEDS:-0 1 8}
export ONE_FILE= # options of runs that share a GPU
MPS=             # whether this sweep has started MPS

for name in SEEDS THRESHOLDS TEMPERATURES; do # they become parts of a command line
    case ${!name:-} in
        *[!0-9eE.+\ -]*) echo "$name=${!name}: numbers are expected, with spaces between them" >&2 && exit 2 ;;
    esac
done

run_line() { # quoted words arrive whole, and nothing is evaluated
    local words
    mapfile -d '' words < <(xargs -r printf '%s\0' <<<"$1")
    wait $! || { echo "$1: quotes that do not match" >>"$LISTS/failed" && return; }
    run_one "${words[@]}"
}

run_one() { # SLOT is xargs's number of the place, from 0 to JOBS - 1
    local gpus=($GPUS) log # named by the end of the arguments, where a sweep puts what varies, and a checksum of all
    log="$LOGS/$(printf '%s' "$*" | tr -cs 'A-Za-z0-9.' '_' | tail -c 60)_$(printf '%s' "$*" | cksum | cut -d ' ' -f 1).log"
    echo "start  $*"
    echo "$*" >>"$LISTS/started"
    # shellcheck disable=SC2086
    if "$PYTHON" main.py --resume -g "${gpus[SLOT % ${#gpus[@]}]}" $ONE_FILE "$@" >"$log" 2>&1; then
        sed -n 's/^results: //p; s/^finished: .* in \(.*\) (--overwrite.*/\1/p' "$log" | tail -n 1 >>"$LISTS/folders"
        echo "done   $*: $(grep -h 'test mAP' "$log" | tail -n 1)"
    else
        echo "FAILED $*: $(tail -n 1 "$log")"
        echo "$*: $log" >>"$LISTS/failed"
    fi
    local finished=$(lines_of folders) failed=$(lines_of failed)
    echo "       $finished of $TOTAL finished, $(($(lines_of started) - finished - failed)) running, $failed failed"
}

lines_of() { [ -e "$LISTS/$1" ] && wc -l <"$LISTS/$1" || echo 0; }
export -f run_line run_one lines_of

share() { # among the JOBS: the cores evenly; and a GPU that several use, with one copy of the images and by MPS
    [[ $JOBS =~ ^[1-9][0-9]*$ ]] && [ "$JOBS" -gt 1 ] || return 0
    local gpus=($GPUS) cores slot
    cores=$(nproc)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > JOBS ? cores / JOBS : 1))}
    for ((slot = 0; slot < JOBS; slot++)); do echo "${gpus[slot % ${#gpus[@]}]}"; done | grep -v cpu | sort | uniq -d | grep -q . || return 0
    export ONE_FILE="--cache disk" # which the system keeps in memory once for all of them
    if [ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ] && command -v nvidia-cuda-mps-control >/dev/null; then
        CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d)
        export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY=$CUDA_MPS_PIPE_DIRECTORY
        if nvidia-cuda-mps-control -d </dev/null; then # or it reads the lines of the sweep
            MPS=started
        else
            rm -rf "$CUDA_MPS_PIPE_DIRECTORY"
            unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
        fi
    fi
}

run_all() { # its lines come from a redirection, not a pipe: a pipe would put it into a shell that hears no signal
    if [ -n "${LIST:-}" ]; then
        cat
        return
    fi
    command -v "$PYTHON" >/dev/null || { echo "PYTHON=$PYTHON: no such program" >&2 && exit 2; }
    mkdir -p "$LOGS" && LISTS=$(mktemp -d -p "$LOGS") || exit 2
    export LISTS # of what this sweep has started, finished and failed; others may share the LOGS
    trap clean_up EXIT
    local lines folders page
    mapfile -t lines
    export TOTAL=${#lines[@]}
    share
    setsid xargs -P "$JOBS" --process-slot-var=SLOT -d '\n' -n 1 bash -c 'run_line "$1"' run_all < <(printf '%s\n' "${lines[@]}") &
    local group=$! status
    trap 'stop_all "$group" 130' INT
    trap 'stop_all "$group" 143' TERM
    wait "$group"
    status=$?
    if [ -e "$LISTS/failed" ]; then
        echo "failed runs, each with its log:"
        cat "$LISTS/failed"
    fi
    if [ -s "$LISTS/folders" ]; then
        mapfile -t folders <"$LISTS/folders"
        page="$LOGS/$(basename "$0" .sh)_$(printf '%s\n' "${lines[@]}" | cksum | cut -d ' ' -f 1)"
        echo && "$PYTHON" report.py "${folders[@]}" --csv "$page.csv" --html "$page.html"
    fi
    [ $status = 0 ] && [ ! -e "$LISTS/failed" ]
}

clean_up() {
    rm -rf "$LISTS"
    [ -z "$MPS" ] || { echo quit | nvidia-cuda-mps-control && rm -rf "$CUDA_MPS_PIPE_DIRECTORY"; }
}

stop_all() { # every run saves at its next batch; wait for them
    trap '' INT TERM
    kill -TERM -- "-$1"
    while kill -0 -- "-$1" 2>/dev/null; do sleep 0.1; done
    exit "$2"
}
