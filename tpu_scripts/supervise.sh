#!/usr/bin/env bash
# Runs a recipe on a pod to its end: starts it, and restarts it from its last checkpoint after a preemption, a crash or
# a hang. A spot pod that was preempted is created and set up again. Ctrl-C stops the run, which saves first.
#
# Usage: supervise.sh [NAME] [options] -- RECIPE [FIELD=VALUE ...] [options of easylm run]
#
#   --job JOB            default: run
#   --failures N         give up after so many restarts in a row without a new step (default: 5)
#   --restarts N         give up after so many restarts (default: 100)
#   --pause SECONDS      before the first restart; doubles with each failure, up to 600 (default: 10)
#   --deadline SECONDS   without progress the run hangs (default: 2400); the run's own watchdog is faster
#   --frozen SECONDS     a worker whose heartbeat is older hangs (default: 120)
#   --poll SECONDS       between two looks (default: 15)
#   --zone ZONE, --project PROJECT, --dry-run
#
# Run it where it stays on, in tmux or on a small VM. If it ends, the job goes on, and the same command watches it again.
# Exit status: 0 the recipe finished; 2 an error that you have to fix; 75 given up; 130 stopped.
#
# Example: supervise.sh tulu -- recipes/tulu25/table2_ppo_against_dpo.py
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "failures= restarts= pause= deadline= frozen= unreachable= leave= poll=" "$@"
need_pod
((${#COMMAND[@]})) || die $USER_ERROR "which recipe? write it after --, such as: supervise.sh $NAME -- recipes/quickstart.py"
flags=()
for option in failures restarts pause deadline frozen unreachable leave poll; do
  variable=OPT_$option
  [[ -n ${!variable:-} ]] || continue
  number "$option" "${!variable}"
  flags+=("--$option=${!variable}")
done
for flag in "${PASSED[@]}"; do flags+=("--flag=$flag"); done
if [[ -n $OPT_dry_run ]]; then
  for script in status launch; do
    rest=(--json)
    [[ $script != launch ]] || rest=(-- "${COMMAND[@]}")
    bash "$SCRIPTS/$script.sh" "$NAME" "${PASSED[@]}" --job "$OPT_job" "${rest[@]}"
  done
  exit 0
fi
python -m easylm_jax.runtime.launch.supervisor "$NAME" --scripts "$SCRIPTS" --job "$OPT_job" "${flags[@]}" -- "${COMMAND[@]}"
