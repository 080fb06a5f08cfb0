#!/usr/bin/env bash
# Trains the paper's Kaggle model on one node. From the checkout, after `make install`:
#   sbatch scripts/slurm/kaggle_1node.sh [dqrm-cpu train options]
# DQRM_DATA names the prepared data set; without it, clicks are generated. Account, partition and anything else go to
# sbatch as options, before the script; they overrule the lines below. docs/clusters.md has the rest.
#SBATCH --job-name=dqrm-kaggle
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=56
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail
DQRM_LAUNCHER=${DQRM_LAUNCHER:-none}
# shellcheck source=scripts/slurm/functions.sh
source "${DQRM_ROOT:-$SLURM_SUBMIT_DIR}/scripts/slurm/functions.sh"

train --preset kaggle "$@"
