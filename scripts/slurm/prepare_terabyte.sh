#!/usr/bin/env bash
# Prepares Criteo's 24 days. From the checkout, with day_0.gz to day_23.gz (or .zst, or plain) in the folder DQRM_DAYS:
#   sbatch scripts/slurm/prepare_terabyte.sh [dqrm-cpu prepare options]
# Each task of the array reads one day to its end and stops the job if it is damaged. The task that finishes last then
# prepares all of them: ids go by first appearance and rows are shuffled over all days, which has one order only.
# Days that were checked are not read again: once a damaged one is replaced, submit with --array=N for it alone.
#SBATCH --job-name=dqrm-prepare
#SBATCH --array=0-23
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=48G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
set -euo pipefail
DQRM_LAUNCHER=none
# shellcheck source=scripts/slurm/functions.sh
source "${DQRM_ROOT:-$SLURM_SUBMIT_DIR}/scripts/slurm/functions.sh"

days=${DQRM_DAYS:-$root/data/days}
out=${DQRM_OUT:-$root/data/terabyte}
checked=$out.checked # beside the data set, which must have a folder of its own
num_days=${DQRM_NUM_DAYS:-24}
task=${SLURM_ARRAY_TASK_ID:?submit with --array}
[ "$task" -lt "$num_days" ] || fail "--array goes beyond day $((num_days - 1)); DQRM_NUM_DAYS says how many there are"

day_file() {
  local path
  for path in "$days/day_$1.gz" "$days/day_$1.zst" "$days/day_$1"; do
    [ -e "$path" ] && printf '%s' "$path" && return 0
  done
  fail "there is no day_$1, day_$1.gz or day_$1.zst in $days; DQRM_DAYS names their folder"
}

# Size and time of change: what a day was when it was checked.
stamp() { stat --dereference --format='%s %Y' "$1"; }

# Behind `||`, where bash ignores `set -e`: each failure is returned by hand.
check_day() {
  local path
  path=$(day_file "$1") || return
  case $path in
    *.gz) run_ranks gzip --test "$path" || return ;;
    *.zst) run_ranks zstd --test --quiet "$path" || return ;;
  esac
  stamp "$path" >"$checked/day_$1.tmp" && mv "$checked/day_$1.tmp" "$checked/day_$1"
}

is_checked() {
  [ -s "$checked/day_$1" ] && [ "$(cat "$checked/day_$1")" = "$(stamp "$(day_file "$1")")" ]
}

mkdir -p "$checked"
if ! is_checked "$task"; then
  check_day "$task" || finish_try $?
  say "day $task is whole"
fi

files=()
for ((day = 0; day < num_days; day++)); do
  is_checked "$day" || exit 0
  files+=("$(day_file "$day")")
done
# Two tasks may see the last mark at once: one of them makes this folder. A requeued one finds its own name in it.
claim=$checked/prepared-by-$SLURM_ARRAY_JOB_ID
if mkdir "$claim" 2>/dev/null; then
  echo "$task" >"$claim/task"
fi
[ "$(cat "$claim/task" 2>/dev/null)" = "$task" ] || exit 0
if [ -e "$out/manifest.json" ]; then
  say "$out is prepared already"
  exit 0
fi
say "all days are whole: preparing $out"
run_ranks "$command" prepare "${files[@]}" --format terabyte --max-ind-range "${DQRM_MAX_IND_RANGE:-10000000}" \
  --out "$out" "$@" || finish_try $?
