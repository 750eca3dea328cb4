#!/usr/bin/env bash
# Every method on the embedded digits, three seeds each.   JOBS=2 sweeps/digits_table.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # another number gives other last bits, and after seven epochs other results
DATASETS=digits GPUS=${GPUS:-cpu} exec "$(dirname "$0")/paper_table.sh" "$@"
