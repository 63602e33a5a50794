#!/usr/bin/env bash
# Deletes a pod with everything on it, and the request for it. Run folders in a bucket or on NFS stay.
#
# Usage: delete.sh [NAME] [--zone ZONE] [--project PROJECT] [--dry-run]
#
# Exit status: 0 nothing is left, also where there was nothing; 75 gcloud failed and the pod may still cost.
#
# Example: delete.sh tulu
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "" "$@"
need_pod

removed=""
for kind in queued-resources tpu-vm; do
  force=()
  [[ $kind == tpu-vm ]] || force=(--force)
  if ask compute tpus $kind delete "$NAME" "${WHERE[@]}" "${force[@]}" --quiet; then
    removed=1
  elif [[ $KIND != absent ]]; then
    die $TEMPORARY "$NAME is not deleted and may still cost: $WHY"
  fi
done
[[ -z $OPT_dry_run ]] || exit 0
look
[[ $POD == ABSENT ]] || die $TEMPORARY "$NAME is $POD and may still cost; run delete.sh again"
rm -rf "$MEMORY"
if [[ -n $removed ]]; then say "$NAME is deleted"; else say "there is no pod $NAME in $ZONE"; fi
