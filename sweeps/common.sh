# Sourced by the sweeps: run_all reads lines of arguments and runs `main.py --resume` with each, JOBS side by side.
#
#   JOBS=4 GPUS="0 1" PYTHON=python sweeps/seeds.sh -d coco
#   JOBS=3 GPUS="0 0 0" sweeps/seeds.sh -d coco               # three runs at a time on one GPU
#   LIST=1 sweeps/seeds.sh -d coco                            # only print the lines (for sweeps/slurm.sh)
#
# A finished run is skipped, an interrupted one continues. A run that fails does not stop the others; it is listed at
# the end with its log, and the sweep's exit status is then 1. Last comes the table of the sweep's runs, with a page
# beside the logs.

set -fuo pipefail # f: no value becomes names of files
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
JOBS=${JOBS:-1} LOGS=${LOGS:-results/logs} SEEDS=${SEEDS:-0 1 8}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
gpus=(${GPUS:-0})
one_file=()              # options of runs that share a GPU
pids=() lines=() logs=() # of the running processes, by place: 0 to JOBS - 1
folders=() failed=()     # of the runs that have ended

[[ $JOBS =~ ^[1-9][0-9]*$ ]] || { echo "JOBS=$JOBS: a number is expected" >&2 && exit 2; }
for name in SEEDS THRESHOLDS TEMPERATURES; do # they become parts of a command line
    case ${!name:-} in
        *[!0-9eE.+\ -]*) echo "$name=${!name}: numbers are expected, with spaces between them" >&2 && exit 2 ;;
    esac
done

run_all() {
    [ -z "${LIST:-}" ] || exec cat
    local all line page
    command -v "$PYTHON" >/dev/null || { echo "PYTHON=$PYTHON: no such program" >&2 && exit 2; }
    mkdir -p "$LOGS" || exit 2
    mapfile -t all
    trap 'stop 130' INT
    trap 'stop 143' TERM
    share
    for line in "${all[@]}"; do
        while [ ${#pids[@]} = "$JOBS" ]; do collect; done
        start "$line"
    done
    while [ ${#pids[@]} != 0 ]; do collect; done
    [ ${#failed[@]} = 0 ] || printf '%s\n' "failed runs, each with its log:" "${failed[@]}"
    if [ ${#folders[@]} != 0 ]; then
        page="$LOGS/$(basename "$0" .sh)_$(number "${all[@]}")"
        echo && "$PYTHON" report.py "${folders[@]}" --csv "$page.csv" --html "$page.html" || return
    fi
    [ ${#failed[@]} = 0 ]
}

start() { # a line in the first free place; quoted words arrive whole, and nothing is evaluated
    local words place=0
    while [ -n "${pids[place]:-}" ]; do place=$((place + 1)); done
    mapfile -d '' words < <(xargs printf '%s\0' <<<"$1")
    lines[place]=$1
    logs[place]="$LOGS/$(tr -cs 'A-Za-z0-9.' _ <<<"$1" | tail -c 60)$(number "$1").log"
    echo "start  $1"
    "$PYTHON" main.py --resume -g "${gpus[place % ${#gpus[@]}]}" "${one_file[@]}" "${words[@]}" \
        >"${logs[place]}" 2>&1 </dev/null &
    pids[place]=$!
}

collect() { # wait until a run ends, and report the ones that have ended
    local place log
    wait -n
    for place in "${!pids[@]}"; do
        kill -0 "${pids[place]}" 2>/dev/null && continue
        log=${logs[place]}
        if wait "${pids[place]}"; then
            folders+=("$(sed -n 's/^results: //p; s/^finished: .* in \(.*\) (--overwrite.*/\1/p' "$log" | tail -n 1)")
            echo "done   ${lines[place]}: $(grep 'test mAP' "$log" | tail -n 1)"
        else
            failed+=("${lines[place]}: $log")
            echo "FAILED ${lines[place]}: $(tail -n 1 "$log")"
        fi
        unset "pids[place]"
        echo "       ${#folders[@]} of ${#all[@]} finished, ${#pids[@]} running, ${#failed[@]} failed"
    done
}

stop() { # every run saves at its next batch; wait for them
    trap '' INT TERM
    [ ${#pids[@]} = 0 ] || kill -TERM "${pids[@]}" 2>/dev/null
    wait
    exit "$1"
}

share() { # among the JOBS: the cores evenly; and a GPU that several use, with one copy of the images and by MPS
    local cores=$(nproc)
    [ "$JOBS" = 1 ] && return
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > JOBS ? cores / JOBS : 1))}
    [ "${gpus[0]}" != cpu ] && [ "$(printf '%s\n' "${gpus[@]:0:JOBS}" | sort -u | wc -l)" -lt "$JOBS" ] || return
    one_file=(--cache disk) # which the system keeps in memory once for all of them
    if [ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ] && command -v nvidia-cuda-mps-control >/dev/null; then
        export CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d)
        export CUDA_MPS_LOG_DIRECTORY=$CUDA_MPS_PIPE_DIRECTORY
        nvidia-cuda-mps-control -d </dev/null
        trap 'echo quit | nvidia-cuda-mps-control; rm -rf "$CUDA_MPS_PIPE_DIRECTORY"' EXIT
    fi
}

number() { # a checksum of the arguments
    printf '%s\n' "$@" | cksum | cut -d ' ' -f 1
}
