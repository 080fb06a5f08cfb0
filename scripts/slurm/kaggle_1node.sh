#!/usr/bin/env bash
# Trains the paper's Kaggle model on one node. From the checkout, after `make install`:
#   sbatch scripts/slurm/kaggle_1node.sh [dqrm-cpu train options]
# Account, partition and anything else go to sbatch as options; they overrule the lines below.
#SBATCH --job-name=dqrm-kaggle
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

# sbatch runs a copy of this file from its spool directory: the checkout is where the job was submitted.
root=${DQRM_ROOT:-$SLURM_SUBMIT_DIR}
run_dir=${DQRM_RUN_DIR:-$root/runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}

"${DQRM_COMMAND:-$root/.venv/bin/dqrm-cpu}" train --preset kaggle --run-dir "$run_dir" --resume auto "$@" &
training=$!

# Slurm tells this script that the time limit is near; training then saves, and the same command goes on later.
trap 'kill -USR1 "$training"' USR1
trap 'kill -TERM "$training"' TERM
status=0
while kill -0 "$training" 2>/dev/null; do
  status=0
  wait "$training" || status=$?
done
exit "$status"
