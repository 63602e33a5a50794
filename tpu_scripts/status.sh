#!/usr/bin/env bash
# Shows the state of a pod and of a job on each of its workers: running, its stage, step and phase; or how it ended.
#
# Usage: status.sh [NAME] [--job JOB] [--json] [--zone ZONE] [--project PROJECT] [--dry-run]
#
# With --json, one line for a program: {"pod": STATE, "workers": [...]}; a worker that does not answer is null.
#
# Example: status.sh tulu
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "json" "$@"
need_pod
look
ANSWERS=$SCRATCH/none
if [[ $POD == READY ]]; then
  on_workers "$(on_job status)" || { [[ -n ${OPT_json:-} ]] || say "$WHY"; }
fi
[[ -z $OPT_dry_run ]] || exit 0
python -m easylm_jax.runtime.launch.status "$ANSWERS" --pod "$POD" --workers "$WORKERS" ${OPT_json:+--json}
