#!/usr/bin/env bash
# Every figure that needs a GPU, in under nine minutes, as one Markdown file.   benchmarks/gpu_all.sh [gpu.md]
#
# Needs PyTorch >= 2.11, torchvision, timm and scikit-learn, and for the teacher open_clip_torch with its ftfy and regex
# (an unpacked wheel on PYTHONPATH will do). No internet, no data, no weights. The interpreter is PYTHON, else that of the
# environment here, else python3.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-results/gpu.md}") began=$SECONDS
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

run() { # seconds it may take, then the command; what fails is said in the file, and the rest goes on
    local limit=$1 left=$((530 - SECONDS + began)) status
    shift
    echo "== $*" >&2
    if [ $left -lt 20 ]; then
        status="none, for lack of time"
    else
        timeout $((limit < left ? limit : left)) "$python" "$@" > >(tee -a "$out") 2>"$errors"
        status=$?
        tail -n 20 "$errors" >&2
    fi
    [ "$status" = 0 ] && return
    printf '\n`%s`: not measured, exit status %s; the end of what it said:\n\n```\n%s\n```\n' \
        "$*" "$status" "$(tail -n 20 "$errors")" | tee -a "$out"
}

if ! reason=$("$python" -c 'import torch; torch.cuda.init()' 2>&1); then
    echo "$python finds no GPU (${reason##*$'\n'}); PYTHON=... names another interpreter" >&2
    exit 2
fi
mkdir -p "$(dirname "$out")" && : >"$out"
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
"$python" -c 'import pytest' 2>/dev/null && run 150 -m pytest -q -p no:cacheprovider tests/test_gpu.py
run 120 benchmarks/train.py --official 640 --test 640 --repeats 3
run 130 benchmarks/train.py --cell --repeats 1
run 100 benchmarks/teacher.py --images 1024 --batch-size 128
run 60 benchmarks/decode.py --images 500
run 60 benchmarks/train.py -d digits --no-reference
run 90 benchmarks/ddp.py --official 400
echo "
All of it took $((SECONDS - began)) s." | tee -a "$out"
