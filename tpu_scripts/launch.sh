#!/usr/bin/env bash
# Starts a recipe on all workers of a pod, and returns when it runs. It goes on when this machine is off.
#
# Usage: launch.sh [NAME] [options] -- RECIPE [FIELD=VALUE ...] [options of easylm run]
#
#   --job JOB            a name for it, for logs.sh and the others (default: run)
#   --zone ZONE, --project PROJECT, --dry-run
#
# RECIPE is a file of the project, which is copied to the workers by setup.sh and sync.sh. Without --out the run is
# written to ~/easylm/shared/runs. supervise.sh does the same and restarts the run when it has to.
# Exit status: 0 it runs; 2 it runs already, the pod is not set up, ...; 75 a worker cannot be reached.
#
# Example: launch.sh tulu -- recipes/tulu25/table2_ppo_against_dpo.py
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "" "$@"
need_pod
((${#COMMAND[@]})) || die $USER_ERROR "which recipe? write it after --, such as: launch.sh $NAME -- recipes/quickstart.py"
need_ready

out="--out ~/easylm/shared/runs"
for word in "${COMMAND[@]}"; do [[ $word != --out && $word != --out=* ]] || out=""; done
must_on_workers "$(on_job status)"
if [[ -z $OPT_dry_run ]] && running=$(grep -l '"state": "running"' "$ANSWERS"/*.log); then
  running=$(sed 's/.*\/\([0-9]*\)\.log/\1/' <<<"$running" | paste -s -d ' ' -)
  die $USER_ERROR "job $(quote "$OPT_job") is running already on worker $running of $NAME; stop it with stop.sh, or give another --job"
fi
if ! on_workers "EASYLM_POD=$(quote "$TYPE"); export EASYLM_POD; $(on_job start "-- ../venv/bin/python -m easylm_jax run $(quote "${COMMAND[@]}") $out")"; then
  answers=$SCRATCH/start why=$WHY kind=$KIND
  cp -r "$ANSWERS" "$answers"
  on_workers "$(on_job stop --now)" || say "could not stop it on every worker: $WHY"
  ANSWERS=$answers WHY=$why KIND=$kind
  workers_failed
fi
[[ -n $OPT_dry_run ]] || say "job $(quote "$OPT_job") is running on $WORKERS workers of $NAME; see what it prints with logs.sh $NAME --follow"
