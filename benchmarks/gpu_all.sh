#!/usr/bin/env bash
# Every test and every figure that needs a GPU, in under nine minutes, as one Markdown file.
#
#   benchmarks/gpu_all.sh [results/gpu.md]         # or: make gpu
#   GPU=cpu benchmarks/gpu_all.sh                  # the same at toy size on a CPU; the tests are skipped
#
# Needs PyTorch >= 2.11, torchvision, timm and scikit-learn, and for the teacher open_clip_torch with its ftfy and regex
# (an unpacked wheel on PYTHONPATH will do). No internet, no data, no weights. The interpreter is PYTHON, else the one of
# the environment here, else python3.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-results/gpu.md}") began=$SECONDS until=$SECONDS gpu=${GPU:-0} patience=1
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

run() { # its time limit in seconds (unused time is carried over), then the command; the file reports a failure
    local status
    until=$((until + patience * $1))
    shift
    echo "== $*" >&2
    timeout $((until - SECONDS)) "$python" "$@" > >(tee -a "$out") 2>"$errors"
    status=$?
    tail -n 20 "$errors" >&2
    [ "$status" = 0 ] && return
    printf '\n`%s`: not measured, exit status %s; the end of its output:\n\n```\n%s\n```\n' \
        "$*" "$status" "$(tail -n 20 "$errors")" | tee -a "$out"
}

small=() few=()
if [ "$gpu" = cpu ]; then
    small=(--image-size 32 --no-pretrained -m timm:test_resnet --official 20) patience=10
    few=(--test 10 --teacher models/digits_clip.json)
elif ! reason=$("$python" -c 'import torch; torch.cuda.init()' 2>&1); then
    echo "$python finds no GPU (${reason##*$'\n'}); PYTHON=... names a different interpreter" >&2
    exit 2
fi
mkdir -p "$(dirname "$out")" && : >"$out"
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')

# the limits add up to less than nine minutes
"$python" -c 'import pytest' 2>/dev/null && run 95 -m pytest -q -rs -p no:cacheprovider tests/test_gpu.py
run 75 benchmarks/step.py --batches 8 -g "$gpu" "${small[@]:0:5}"
run 75 benchmarks/step.py --batches 16 -g "$gpu" "${small[@]:0:5}"
run 65 benchmarks/train.py --official 640 --test 320 --repeats 3 -g "$gpu" "${small[@]}" "${few[@]}"
run 105 benchmarks/train.py --cell --repeats 1 -g "$gpu" "${small[@]}" "${few[@]}"
if [ "$gpu" != cpu ]; then # on a CPU the teacher's pass takes longer than all else
    run 40 benchmarks/teacher.py --images 1024 --batch-size 128 -g "$gpu"
fi
run 55 benchmarks/jobs.py -g "$gpu" "${small[@]}"
[ "$gpus" -gt 1 ] && run 25 benchmarks/ddp.py --official 400
echo "
All of it took $((SECONDS - began)) s." | tee -a "$out"
