#!/usr/bin/env bash
# The thresholds of VLPL's grid, three seeds each; the teacher runs once.   sweeps/thresholds.sh -d pascal
source "$(dirname "$0")/common.sh"
run_all < <(
    for threshold in ${THRESHOLDS:-0.1 0.15 0.2 0.25 0.3}; do
        for seed in $SEEDS; do
            echo "${*@Q} -th $threshold -s $seed"
        done
    done
)
