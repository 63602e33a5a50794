#!/usr/bin/env bash
# Shows what a pod costs by the hour and has cost since it was created; or what a type would.
#
# Usage: cost.sh [NAME] [--zone ZONE] [--project PROJECT] [--prices FILE] [--dry-run]
#        cost.sh --type TYPE [--spot] [--hours N] [--prices FILE]
#
#   --prices FILE        instead of easylm_jax/plan/prices.json, in the same form ($EASYLM_PRICES does the same)
#
# These are list prices of the chips. Disks, buckets and traffic come on top.
#
# Example: cost.sh --type v5p-128 --hours 24
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "type= spot hours= prices=" "$@"
if [[ -z ${OPT_type:-} ]]; then
  need_pod
  look
  [[ -z $OPT_dry_run ]] || exit 0
  [[ $POD != ABSENT ]] || die $USER_ERROR "there is no pod $NAME in $ZONE; nothing costs"
  [[ -n $TYPE ]] || die $TEMPORARY "$NAME is $POD: it has no chips yet and costs nothing"
  [[ $SPOT != True ]] || OPT_spot=1
  python -m easylm_jax.plan.cost price "$TYPE" --created "$CREATED" ${OPT_spot:+--spot} ${OPT_prices:+--prices "$OPT_prices"}
else
  [[ -z ${OPT_hours:-} ]] || number hours "$OPT_hours"
  python -m easylm_jax.plan.cost price "$OPT_type" ${OPT_spot:+--spot} ${OPT_hours:+--hours "$OPT_hours"} ${OPT_prices:+--prices "$OPT_prices"}
fi
