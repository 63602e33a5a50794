#!/usr/bin/env bash
# A run on the nodes of a SLURM job, one process on each with all its GPUs; started again after a crash or a hang, and
# requeued before its time ends or when it is preempted.
#
# Usage: sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 tpu_scripts/elsewhere/slurm.sh \
#          RECIPE [FIELD=VALUE ...] --out FOLDER
#
# Submit it from the project's folder, which all nodes share, as they do FOLDER. Uses .venv there, or $EASYLM_PYTHON.
# Exit status: 0 finished; 2 an error that you have to fix; 75 given up after $EASYLM_FAILURES failures (default: 5).
#
#SBATCH --job-name=easylm
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -uo pipefail
fail() {
  echo "slurm: error: $*" >&2
  exit 2
}
(($#)) || fail "which recipe? sbatch --nodes=N tpu_scripts/elsewhere/slurm.sh RECIPE --out FOLDER"
[[ -n ${SLURM_JOB_ID:-} ]] || fail "this is a batch script: submit it with sbatch"
python=${EASYLM_PYTHON:-$SLURM_SUBMIT_DIR/.venv/bin/python}
[[ -x $(command -v "$python") ]] || fail "there is no $python; run make setup in the folder that you submit from"
cd "$SLURM_SUBMIT_DIR" || fail "there is no folder $SLURM_SUBMIT_DIR on this node"
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export EASYLM_PROCESSES=$SLURM_NNODES PYTHONPATH=$SLURM_SUBMIT_DIR
statuses=$SLURM_SUBMIT_DIR/.easylm-slurm-$SLURM_JOB_ID # srun tells the highest status alone, and 2 is lower than others
trap 'rm -rf "$statuses"' EXIT

step="" asked=""
ask() { # the step is saved, and the job goes on in another allocation
  asked=1
  [[ -z $step ]] || kill -TERM "$step" 2>/dev/null
}
trap ask TERM

failures=0
while :; do
  rm -rf "$statuses"
  mkdir -p "$statuses"
  # The coordinator of the last start may still be closing its port.
  export EASYLM_COORDINATOR=$first:$((20000 + (SLURM_JOB_ID * 8 + failures) % 20000))
  # shellcheck disable=SC2016 # expanded on each node
  srun --nodes="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=0 bash -c '
    trap : TERM
    EASYLM_PROCESS_ID=$SLURM_PROCID "$1" -m easylm_jax run "${@:2}"
    echo $? >"$0/$SLURM_PROCID"' "$statuses" "$python" "$@" &
  step=$!
  wait "$step"
  while kill -0 "$step" 2>/dev/null; do wait "$step"; done
  found=$(sort -nu "$statuses"/* 2>/dev/null | paste -s -d ' ' -)
  [[ $found != 0 ]] || exit 0
  [[ " $found " != *" 2 "* ]] || exit 2
  if [[ -n $asked ]]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
  fi
  ((++failures <= ${EASYLM_FAILURES:-5})) || {
    echo "slurm: error: given up after $((failures - 1)) failures; the last exit statuses: ${found:-none}" >&2
    exit 75
  }
  echo "slurm: exit statuses ${found:-none}; starting again" >&2
  sleep "${EASYLM_PAUSE:-10}"
done
