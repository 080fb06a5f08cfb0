# shellcheck shell=bash
# What the job scripts beside this file share; each sources it and calls `train`. docs/clusters.md explains the variables.
# shellcheck disable=SC2034  # what is set here is read by the scripts that source it

# sbatch runs a copy of a script from its spool folder: the checkout is where the job was submitted.
root=${DQRM_ROOT:-${SLURM_SUBMIT_DIR:?start this script with sbatch}}
command=${DQRM_COMMAND:-$root/.venv/bin/dqrm-cpu}
launcher=${DQRM_LAUNCHER:-mpirun}
run_dir=${DQRM_RUN_DIR:-$root/runs/${SLURM_JOB_NAME:-dqrm}-${SLURM_JOB_ID:-0}}
tasks_per_node=${SLURM_NTASKS_PER_NODE:-1}
# A job that was given fewer nodes while it waited (scontrol update) keeps the tasks that it was submitted with.
[ -z "${SLURM_NTASKS_PER_NODE:-}" ] || export SLURM_NTASKS=$((${SLURM_JOB_NUM_NODES:-1} * tasks_per_node))
cpus_per_task=${SLURM_CPUS_PER_TASK:-$((${SLURM_CPUS_ON_NODE:-1} / tasks_per_node))}

readonly NEAR_LIMIT=138 # 128 + SIGUSR1: what dqrm-cpu exits with once it has saved

say() { printf '[%(%F %T)T] job %s: %s\n' -1 "${SLURM_JOB_ID:-?}" "$*"; }

fail() {
  say "$*" >&2
  exit 2
}

# Trains to the end, over as many tries of this job as that takes; never returns. Arguments: options of `dqrm-cpu train`.
train() {
  if [ -e "$run_dir/result.json" ] && [ -z "${DQRM_DOCTOR:-}" ]; then
    say "$run_dir holds a finished run; remove its result.json to go on with it"
    exit 0
  fi
  local data=() status=0 action=(train --resume auto)
  # Only looks: a job of a minute that tells whether the long one will run well.
  [ -z "${DQRM_DOCTOR:-}" ] || action=(doctor --job)
  [ -z "${DQRM_DATA:-}" ] || data=(--data "$DQRM_DATA")
  # Whatever an earlier try left would speak for this one if it fails before it opens the run folder.
  rm -f "$run_dir/interrupted.json"
  outlast_kills
  say "try ${SLURM_RESTART_COUNT:-0} on ${SLURM_JOB_NODELIST:-this host}, ${SLURM_NTASKS:-1} ranks by $launcher"
  run_ranks "$command" "${action[@]}" --run-dir "$run_dir" "${data[@]}" "$@" || status=$?
  finish_try "$status"
}

# What Slurm still kills of a requeued try it knows by job and step, and the steps of the next try have the same numbers:
# KillWait seconds after the requeue, and a few more, nothing may run yet. Most sites start a job again later than that.
outlast_kills() {
  local kill_wait requeued now left
  [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || return 0
  kill_wait=$(scontrol show config | sed -nE 's/^KillWait *= *([0-9]+).*/\1/p') || kill_wait=
  printf -v now '%(%s)T' -1
  requeued=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%V) || requeued=
  requeued=$(date --date="${requeued:-none}" +%s 2>/dev/null) || requeued=$now
  left=$((requeued + ${kill_wait:-30} + 5 - now))
  [ "$left" -gt 0 ] || return 0
  say "waiting $left s: until then Slurm may take this try for the one before, and kill it"
  sleep "$left" &
  wait $! || true
  kill $! 2>/dev/null || true
  [ -z "$cancelled" ] || exit 143 # 128 + SIGTERM
}

# Ends this script after a try: requeues the job if time or a node ran out, otherwise exits with the status given.
finish_try() {
  local status=$1
  say "the work ended with status $status"
  if [ -n "$cancelled" ] || [ "$status" = 0 ]; then
    exit "$status"
  elif [ -e "$run_dir/interrupted.json" ]; then
    requeue "the time limit is near, and the run is saved"
  elif [ -n "$near_limit" ] || [ "$status" = "$NEAR_LIMIT" ]; then
    # Ranks that have only just been started die of the signal.
    requeue "the time limit is near"
  elif ! nodes_answer; then
    requeue "a node is gone"
  fi
  exit "$status"
}

# Runs a command on every rank with the chosen launcher and passes signals on to it; its exit status.
run_ranks() {
  set_environment
  local started=() status=0
  started=(env "${rank_environment[@]}" "$@")
  case $launcher in
    # Without the mpirun script around it: a signal to that one leaves the ranks behind.
    mpirun) mpiexec.hydra -bootstrap "${I_MPI_HYDRA_BOOTSTRAP:-slurm}" -n "$SLURM_NTASKS" -ppn "$tasks_per_node" "${started[@]}" & ;;
    srun-pmi2) srun --kill-on-bad-exit=1 --mpi=pmi2 "${srun_pinning[@]}" "${started[@]}" & ;;
    srun) srun --kill-on-bad-exit=1 --mpi=none "${srun_pinning[@]}" "${started[@]}" & ;;
    none) "${started[@]}" & ;;
    *) fail "DQRM_LAUNCHER=$launcher: choose mpirun, srun-pmi2, srun, or none for one process" ;;
  esac
  ranks_pid=$!
  # A signal ends `wait` early; the last one has the status of the ranks.
  while kill -0 "$ranks_pid" 2>/dev/null; do
    if [ -z "$near_limit" ]; then wait "$ranks_pid" || true; else urge_ranks; fi
  done
  wait "$ranks_pid" || status=$?
  ranks_pid=
  return "$status"
}

# Called until ranks that were told to save have ended: MPI loses a signal that comes while it starts, so that they are told
# again. Those that still run when the time is all but over are requeued as they are: the checkpoint before is there.
urge_ranks() {
  sleep 10 &
  wait -n || true
  kill $! 2>/dev/null || true
  if [ -n "$cancelled" ] || ! kill -0 "$ranks_pid" 2>/dev/null; then return 0; fi
  [ "$(seconds_left)" -gt "${DQRM_MARGIN:-15}" ] || requeue "the time is over before the ranks have saved"
  pass_on USR1
}

# Until the time limit of this job; an hour where there is none, or Slurm does not answer.
seconds_left() {
  local end now
  printf -v now '%(%s)T' -1
  end=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e) || end=
  end=$(date --date="${end:-none}" +%s 2>/dev/null) || end=$((now + 3600))
  echo $((end - now))
}

ranks_pid='' cancelled='' near_limit=''
trap 'say "the time limit is near"; near_limit=yes; pass_on USR1' USR1
trap 'cancelled=yes; pass_on TERM' TERM INT
pass_on() { [ -z "$ranks_pid" ] || kill -s "$1" "$ranks_pid" 2>/dev/null || true; }

# What this site has set already stays as it is.
set_environment() {
  local workers=${CCL_WORKER_COUNT:-0}
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus_per_task > workers ? cpus_per_task - workers : 1))}
  # Of Intel's OpenMP, where it is preloaded: threads that wait sleep soon. Binding them to cores (KMP_AFFINITY,
  # OMP_PROC_BIND) would bind the main thread too, and the readers that it starts inherit its one core.
  export KMP_BLOCKTIME=${KMP_BLOCKTIME:-1}
  if [ "$workers" != 0 ]; then
    # dqrm-cpu has oneCCL do without workers unless told otherwise: without this their cores would idle.
    export CCL_WORKER_OFFLOAD=${CCL_WORKER_OFFLOAD:-1} CCL_WORKER_AFFINITY=${CCL_WORKER_AFFINITY:-auto}
  fi
  PATH=$(dirname "$command"):$PATH
  choose_pinning
  choose_preloads
  case $launcher in
    # One proxy a node, whose CPUs the ranks divide: without this Slurm may give it those of one rank.
    mpirun) export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-$((cpus_per_task * tasks_per_node))} ;;
    # srun does not take the number from sbatch since Slurm 22.05.
    *) export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-$cpus_per_task} ;;
  esac
  [ "$launcher" != srun-pmi2 ] || find_pmi2
  [ "$launcher" != srun ] || choose_meeting_place
}

# DQRM_PIN=core|socket|numa: the CPUs of a rank are whole ones of these; auto: an equal share of the node; none: all.
choose_pinning() {
  local pin=${DQRM_PIN:-auto}
  srun_pinning=()
  case $pin in
    auto | socket | numa) export I_MPI_PIN_DOMAIN=${I_MPI_PIN_DOMAIN:-$pin} ;;
    # Of Intel MPI, "core" is a single one.
    core) export I_MPI_PIN_DOMAIN=${I_MPI_PIN_DOMAIN:-$cpus_per_task:compact} ;;
    none) export I_MPI_PIN=${I_MPI_PIN:-0} ;;
    *) fail "DQRM_PIN=$pin: choose auto, core, socket, numa or none" ;;
  esac
  [ -z "${SLURM_CPU_BIND:-}" ] || return 0
  case $pin in
    core) srun_pinning=(--cpu-bind=cores) ;;
    socket) srun_pinning=(--cpu-bind=sockets) ;;
    numa) srun_pinning=(--cpu-bind=ldoms) ;;
    none) srun_pinning=(--cpu-bind=none) ;;
  esac
}

# DQRM_PRELOAD="libtcmalloc.so.4 libiomp5.so": those that the linker knows, or that are paths; for the ranks alone.
choose_preloads() {
  local name path found=${LD_PRELOAD:-}
  for name in ${DQRM_PRELOAD:-}; do
    path=$(find_library "$name")
    if [ -n "$path" ]; then found=$found${found:+:}$path; else say "DQRM_PRELOAD: there is no $name here"; fi
  done
  rank_environment=()
  [ -z "$found" ] || rank_environment=("LD_PRELOAD=$found")
}

# Intel MPI meets through the library of Slurm, where there is one; otherwise it has its own.
find_pmi2() {
  local name path
  [ -z "${I_MPI_PMI_LIBRARY:-}" ] || return 0
  for name in libpmi2.so libpmi2.so.0; do
    path=$(find_library "$name")
    [ -z "$path" ] || { export I_MPI_PMI_LIBRARY=$path && return 0; }
  done
}

# The path of a shared library by its name; nothing where there is none.
find_library() {
  local folder
  case $1 in
    */*) [ ! -e "$1" ] || printf '%s' "$1" && return 0 ;;
  esac
  for folder in "$(dirname "$(dirname "$command")")/lib" /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/lib64/slurm /opt/slurm/lib /opt/slurm/lib64; do
    [ -e "$folder/$1" ] && printf '%s' "$folder/$1" && return 0
  done
  return 0
}

# gloo's ranks meet on the first node, at a port of this job's own.
choose_meeting_place() {
  local nodes
  nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  export MASTER_ADDR=${MASTER_ADDR:-${nodes%%$'\n'*}}
  export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
}

# Whether all nodes of the job still run something; Slurm itself may take minutes to notice that one is gone.
nodes_answer() {
  [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ] || return 0
  timeout "${DQRM_NODE_TIMEOUT:-60}" srun --overlap --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task=1 --mpi=none true
}

# Puts this very job back into the queue; Slurm then ends this script.
requeue() {
  local most=${DQRM_MAX_REQUEUES:-100}
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$most" ]; then
    fail "$1, but the job was requeued $most times already (DQRM_MAX_REQUEUES); go on with sbatch and DQRM_RUN_DIR=$run_dir"
  fi
  say "$1: requeueing"
  if ! scontrol requeue "$SLURM_JOB_ID"; then
    case $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) in
      PENDING | COMPLETING | REQUEUE*) ;; # Where a node failed, Slurm did so a moment ago.
      *) fail "Slurm refuses to requeue; go on with sbatch and DQRM_RUN_DIR=$run_dir" ;;
    esac
  fi
  sleep 300 &
  wait $!
}
