#!/usr/bin/env bash
# A sweep as a SLURM array, one run per task: the same lines that the sweep would run, in any order, on any node.
#
#   LIST=1 sweeps/paper_table.sh >jobs.txt
#   sbatch --array=1-$(wc -l <jobs.txt)%8 sweeps/slurm.sh jobs.txt
#   python report.py                                       # when they are through
#
# Two minutes before its time is up, and when it is preempted, a run gets SIGTERM, saves at the next batch and exits with
# 143; its task is then put back in the queue and continues. Adapt the lines below to your cluster.
#SBATCH --job-name=vlpl
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=results/slurm_%A_%a.log

set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" && [ -f main.py ] || { echo "submit it from the repository's folder" >&2 && exit 2; }
if [ $# != 1 ] || [ ! -f "$1" ] || [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    echo "usage: sbatch --array=1-N sweeps/slurm.sh FILE, with the N lines of LIST=1 sweeps/NAME.sh" >&2
    exit 2
fi
case $SLURM_ARRAY_TASK_ID in
    *[!0-9]*) echo "SLURM_ARRAY_TASK_ID=$SLURM_ARRAY_TASK_ID is no number of a line" >&2 && exit 2 ;;
esac
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
line=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")
[ -n "$line" ] || { echo "$1 has no line $SLURM_ARRAY_TASK_ID" >&2 && exit 2; }
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # which srun does not take over from sbatch
mapfile -d '' words < <(xargs printf '%s\0' <<<"$line") # quoted words arrive whole, and nothing is evaluated
wait $! || { echo "$1: line $SLURM_ARRAY_TASK_ID has quotes that do not match" >&2 && exit 2; }
srun "$PYTHON" main.py --resume "${words[@]}"
status=$?
if [ $status = 143 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit $status
