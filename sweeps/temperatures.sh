#!/usr/bin/env bash
# The temperatures of VLPL's grid, three seeds each; the teacher runs once.   sweeps/temperatures.sh -d pascal
source "$(dirname "$0")/common.sh"
run_all < <(
    for temperature in ${TEMPERATURES:-0.01 0.02 0.03 0.04 0.05 0.06 0.07 0.08 0.09 0.1}; do
        for seed in $SEEDS; do
            echo "${*@Q} -t $temperature -s $seed"
        done
    done
)
