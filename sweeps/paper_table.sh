#!/usr/bin/env bash
# Every method on every data set, three seeds each.   JOBS=4 GPUS="0 1 2 3" sweeps/paper_table.sh
#
# LOSSES and DATASETS name others than all of them. iu is not among them: it needs observed negatives.
source "$(dirname "$0")/common.sh"
ORACLES="bce bce_ls iun"
SINGLE="zero_shot an an_ls wan pr epr role asl hill splc LL_R LL_Ct LL_Cp EM EM_APL gr EM_PL EM_PL_ASL gpr CTL"
LOSSES=${LOSSES:-$ORACLES $SINGLE}
run_all < <(
    for dataset in ${DATASETS:-pascal coco nuswide cub}; do
        for loss in $LOSSES; do
            for seed in $SEEDS; do
                echo "-d $dataset -l $loss -s $seed ${*@Q}"
            done
        done
    done
)
