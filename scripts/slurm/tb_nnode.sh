#!/usr/bin/env bash
# Trains the paper's Terabyte model on any number of nodes, a rank on each socket. From the checkout:
#   sbatch --nodes=8 scripts/slurm/tb_nnode.sh [dqrm-cpu train options]
# A rank per node instead: --ntasks-per-node=1 --cpus-per-task=56 before the script, and DQRM_PIN=auto. Every rank holds
# all tables; with DQRM_TABLES=shard each holds some (docs/sharding.md). DQRM_DATA names the prepared data set; without
# it, clicks are generated. docs/clusters.md has the rest.
#SBATCH --job-name=dqrm-tb-n
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=28
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail
DQRM_PIN=${DQRM_PIN:-socket}
# shellcheck source=scripts/slurm/functions.sh
source "${DQRM_ROOT:-$SLURM_SUBMIT_DIR}/scripts/slurm/functions.sh"

train --preset terabyte ${DQRM_TABLES:+--comm.tables "$DQRM_TABLES"} "$@"
