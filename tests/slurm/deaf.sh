#!/usr/bin/env bash
# For tests: ranks that do not hear the signal of the time limit.
#SBATCH --job-name=deaf
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail
# shellcheck source=scripts/slurm/functions.sh
source "$DQRM_ROOT/scripts/slurm/functions.sh"

run_ranks bash -c 'trap "" USR1; echo deaf; while sleep 1; do :; done' || finish_try $?
