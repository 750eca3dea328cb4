#!/usr/bin/env bash
# One setting over the seeds that VLPL tried.   sweeps/seeds.sh -d pascal -l EM_PL
source "$(dirname "$0")/common.sh"
run_all < <(
    for seed in $SEEDS; do
        echo "${*@Q} -s $seed"
    done
)
