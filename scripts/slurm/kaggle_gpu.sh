#!/usr/bin/env bash
# Trains the paper's Kaggle model on one GPU, to compare with. From the checkout, with a CUDA build of torch in .venv:
#   sbatch scripts/slurm/kaggle_gpu.sh [dqrm-cpu train options]
# Sites name their GPUs differently: where --gres=gpu:1 is not known, pass what is, before the script. DQRM_DATA names the
# prepared data set; without it, clicks are generated. docs/clusters.md has the rest.
#SBATCH --job-name=dqrm-kaggle-gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail
DQRM_LAUNCHER=${DQRM_LAUNCHER:-none}
# shellcheck source=scripts/slurm/functions.sh
source "${DQRM_ROOT:-$SLURM_SUBMIT_DIR}/scripts/slurm/functions.sh"

train --preset kaggle --device cuda "$@"
