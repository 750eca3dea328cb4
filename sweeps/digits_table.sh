#!/usr/bin/env bash
# The paper's table on the embedded digits, three seeds each.   sweeps/digits_table.sh
DATASETS=digits GPUS=${GPUS:-cpu} exec "$(dirname "$0")/paper_table.sh" "$@"
