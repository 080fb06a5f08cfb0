#!/usr/bin/env bash
# Trains the paper's Terabyte model on two nodes, a rank on each. From the checkout, after `make install`:
#   sbatch scripts/slurm/tb_2node.sh [dqrm-cpu train options]
# DQRM_DATA names the prepared data set; without it, clicks are generated. Account, partition and anything else go to
# sbatch as options, before the script; they overrule the lines below. docs/clusters.md has the rest.
#SBATCH --job-name=dqrm-tb
#SBATCH --nodes=2
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
# shellcheck source=scripts/slurm/functions.sh
source "${DQRM_ROOT:-$SLURM_SUBMIT_DIR}/scripts/slurm/functions.sh"

train --preset terabyte "$@"
