#!/usr/bin/env bash
# Every method on the embedded digits: a linear head on the image features of the teacher, three seeds and draws each.
# TRIALS=16 also tunes each.   JOBS=2 sweeps/linear_table.sh
source "$(dirname "$0")/common.sh"
exec "$PYTHON" tune.py -d digits --mode linear -m teacher -g "${GPUS:-cpu}" -l all --trials "${TRIALS:-1}" "$@"
