#!/usr/bin/env bash
# A run on a TPU slice of a GKE cluster that xpk manages (https://github.com/AI-Hypercomputer/xpk).
#
# Usage: xpk.sh NAME --cluster CLUSTER --type TYPE --image IMAGE [--project P] [--zone Z] [--restarts N] [--dry-run] \
#          -- RECIPE [FIELD=VALUE ...] --out FOLDER
#
#   NAME             of the workload
#   --type TYPE      v5p-16, v6e:4x4, ... as `easylm plan --topology` takes it
#   --image IMAGE    a container image with the project and its tpu extra
#   --restarts N     after a crash, a hang or a preemption (default: 100)
#   --out FOLDER     a folder that all hosts share, such as a mounted bucket
#
# Watch it with `xpk workload list`, end it with `xpk workload delete`.
#
# Example: xpk.sh tulu --cluster mine --type v5p-128 --image gcr.io/p/easylm --dry-run -- recipes/tulu25/table2_ppo_against_dpo.py --out /shared/runs
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
begin "cluster= type= image= restarts=" "$@"
[[ -n $NAME ]] || die $USER_ERROR "which workload? give its name first"
[[ $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  die $USER_ERROR "a workload cannot be called $(quote "$NAME"): use lower-case letters, digits and hyphens, a letter first"
for option in cluster type image; do
  variable=OPT_$option
  [[ -n ${!variable:-} ]] || die $USER_ERROR "give --$option"
done
((${#COMMAND[@]})) || die $USER_ERROR "which recipe? write it after --"
[[ " ${COMMAND[*]} " == *" --out"* ]] || die $USER_ERROR "give --out after --, a folder that all hosts share"
facts=$(python -m easylm_jax.plan.cost describe "${OPT_type:-}") || exit $USER_ERROR
read -r accelerator _ _ <<<"$facts"
number restarts "${OPT_restarts:-100}"
call=(xpk workload create "--workload=$NAME" "--cluster=${OPT_cluster:-}" "--tpu-type=$accelerator" --num-slices=1
  "--docker-image=${OPT_image:-}" "--max-restarts=${OPT_restarts:-100}"
  ${OPT_project:+"--project=$OPT_project"} ${OPT_zone:+"--zone=$OPT_zone"}
  "--command=EASYLM_POD=$(quote "$OPT_type") python -m easylm_jax run $(quote "${COMMAND[@]}")")
if [[ -n $OPT_dry_run ]]; then
  quote "${call[@]}"
  echo
  exit 0
fi
command -v xpk >/dev/null || die $USER_ERROR "xpk is not on the PATH; install it: pip install xpk"
"${call[@]}" || die $TEMPORARY "xpk could not create the workload $NAME; see what it says above"
