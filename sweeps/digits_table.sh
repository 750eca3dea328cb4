#!/usr/bin/env bash
# Every method on the embedded digits, three seeds each.   JOBS=2 sweeps/digits_table.sh
DATASETS=digits GPUS=${GPUS:-cpu} exec "$(dirname "$0")/paper_table.sh" "$@"
