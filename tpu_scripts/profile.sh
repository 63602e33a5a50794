#!/usr/bin/env bash
# Profiles a job that runs, without stopping it, and fetches the profile for XProf.
#
# Usage: profile.sh [NAME] [options]
#
#   --job JOB            default: run
#   --worker N           whose devices (default: 0)
#   --seconds N          how long (default: 5)
#   --out FOLDER         where the profile goes (default: profiles/NAME)
#   --zone ZONE, --project PROJECT, --dry-run
#
# Show it with: uvx xprof --logdir FOLDER (or pip install xprof), then http://localhost:8791.
#
# Example: profile.sh tulu --seconds 10
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "worker= seconds= out=" "$@"
need_pod
worker=${OPT_worker:-0} seconds=${OPT_seconds:-5} out=${OPT_out:-profiles/$NAME}
number seconds "$seconds"
[[ $worker =~ ^[0-9]+$ ]] || die $USER_ERROR "--worker must be a number, not $(quote "$worker")"
need_ready
must_on_workers "$(on_job profile "--seconds $seconds")" "$worker"
[[ -n $OPT_dry_run ]] || mkdir -p "$out"
ask compute tpus tpu-vm scp "$NAME:easylm/jobs/$OPT_job/profile" "$out" "${WHERE[@]}" "${SSH[@]}" "--worker=$worker" --recurse ||
  die "$(status_of)" "the profile could not be fetched: $WHY"
[[ -n $OPT_dry_run ]] || say "the profile is in $out; show it with: uvx xprof --logdir $(quote "$out/profile")"
