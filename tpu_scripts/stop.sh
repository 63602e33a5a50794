#!/usr/bin/env bash
# Stops a job: it finishes its step, saves, and ends. The pod stays.
#
# Usage: stop.sh [NAME] [options]
#
#   --job JOB            default: run
#   --now                kill it without saving; at most the step since the last checkpoint is lost
#   --zone ZONE, --project PROJECT, --dry-run
#
# Example: stop.sh tulu
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "now" "$@"
need_pod
need_ready
must_on_workers "$(on_job stop "${OPT_now:+--now}")"
[[ -n $OPT_dry_run ]] || say "job $(quote "$OPT_job") is not running on $NAME any more"
