#!/usr/bin/env bash
# Every loss on every data set, three seeds each.   JOBS=4 GPUS="0 1 2 3" sweeps/paper_table.sh
source "$(dirname "$0")/common.sh"
run_all < <(
    for dataset in ${DATASETS:-pascal coco nuswide cub}; do
        for loss in ${LOSSES:-bce iun an EM EM_APL EM_PL}; do
            for seed in $SEEDS; do
                echo "-d $dataset -l $loss -s $seed ${*@Q}"
            done
        done
    done
)
status=$?
[ -n "${LIST:-}" ] || "$PYTHON" report.py
exit $status
