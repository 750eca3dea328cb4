#!/usr/bin/env bash
# Every method on the embedded digits, three seeds each: a linear head on the image features of the teacher, computed once.
#   JOBS=2 sweeps/linear_table.sh
DATASETS=digits GPUS=${GPUS:-cpu} exec "$(dirname "$0")/paper_table.sh" --mode linear -m teacher "$@"
