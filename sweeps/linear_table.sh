#!/usr/bin/env bash
# Every method on the embedded digits, three seeds each: a linear head on the image features of the teacher, computed once.
#   JOBS=2 sweeps/linear_table.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # a step is too small to be divided
DATASETS=digits GPUS=${GPUS:-cpu} exec "$(dirname "$0")/paper_table.sh" --mode linear -m teacher "$@"
