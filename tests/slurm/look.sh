#!/usr/bin/env bash
# For tests: what ranks see of the place that functions.sh gives them, once for each way to pin in LOOK_PINS.
#SBATCH --job-name=look
#SBATCH --output=%x-%j.out
set -euo pipefail
# shellcheck source=scripts/slurm/functions.sh
source "$DQRM_ROOT/scripts/slurm/functions.sh"

for pin in $LOOK_PINS; do
  # In a process of its own: what one way exports would be a preset of the next.
  (DQRM_PIN=$pin && run_ranks "$LOOK_PYTHON" "$DQRM_ROOT/tests/slurm/look.py" "$LOOK_FOLDER/$pin")
done
