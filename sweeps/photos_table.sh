#!/usr/bin/env bash
# Every method with its default settings on the photographs, on three draws of the known labels (3 to 5). TRIALS=16 also
# tunes each, by draws 0 to 2.   JOBS=2 sweeps/photos_table.sh
source "$(dirname "$0")/common.sh"
exec "$PYTHON" tune.py -d photos -g "${GPUS:-cpu}" -l all --trials "${TRIALS:-1}" --draws 3 "$@"
