#!/usr/bin/env bash
# Shows what a job prints. Only worker 0 speaks, unless another one fails.
#
# Usage: logs.sh [NAME] [options]
#
#   --job JOB            default: run
#   --worker N           or `all` (default: 0)
#   --lines N            how many from the end (default: 50)
#   --follow             go on printing, of one worker
#   --fetch FOLDER       write the whole logs of all workers to FOLDER/worker-N.txt instead
#   --zone ZONE, --project PROJECT, --dry-run
#
# Example: logs.sh tulu --follow
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "worker= lines= follow fetch=" "$@"
need_pod
lines=${OPT_lines:-50} worker=${OPT_worker:-0}
number lines "$lines"
[[ $worker == all || $worker =~ ^[0-9]+$ ]] || die $USER_ERROR "--worker must be a number or all, not $(quote "$worker")"
need_ready

log=easylm/jobs/$(quote "$OPT_job")/log.txt
none="{ echo $(quote "easylm: error: no job $OPT_job was started here"); exit 2; }"
if [[ -n ${OPT_fetch:-} ]]; then
  must_on_workers "[ -e $log ] || $none; cat $log"
  [[ -z $OPT_dry_run ]] || exit 0
  mkdir -p "$OPT_fetch"
  for file in "$ANSWERS"/*.log; do cp "$file" "$OPT_fetch/worker-$(basename "$file" .log).txt"; done
  say "the logs are in $OPT_fetch"
elif [[ -n ${OPT_follow:-} ]]; then
  [[ $worker != all ]] || die $USER_ERROR "--follow shows one worker; give --worker N"
  command=(gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" "${SSH[@]}" "--worker=$worker" "--command=tail -n $lines -F $log")
  if [[ -n $OPT_dry_run ]]; then quote "${command[@]}"; echo; else "${command[@]}"; fi
else
  must_on_workers "[ -e $log ] || $none; tail -n $lines $log" "$worker"
  [[ -z $OPT_dry_run ]] || exit 0
  for file in "$ANSWERS"/*.log; do
    if [[ $worker == all ]]; then sed "s/^/[worker $(basename "$file" .log)] /" "$file"; else cat "$file"; fi
  done
fi
