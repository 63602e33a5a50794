#!/usr/bin/env bash
# Creates a TPU pod: asks for a queued resource in each zone in turn until one is granted, and waits until it is ready.
#
# Usage: create.sh [NAME] --type TYPE --zone ZONE[,ZONE...] [options]
#
#   NAME                 the pod; default: $TPU_NAME
#   --type TYPE          v5p-128, v6e-64, v5e:16x16, ... as `easylm plan --topology` takes it
#   --zone ZONES         tried in this order
#   --spot               a spot pod: cheaper, preempted at any time (supervise.sh creates it again)
#   --reserved           from the project's reservations; --reservation NAME: from this one (an alpha flag of gcloud)
#   --wait SECONDS       how long a zone may take to grant the request; then the next is tried (default: 900)
#   --rounds N           how often all zones are tried (default: 10); between rounds the pause doubles, from 30 s
#   --pause SECONDS      the first of these pauses
#   --poll SECONDS       between two looks at the request (default: 15)
#   --runtime VERSION    TPU software; default: that of the type
#   --network, --subnetwork, --service-account, --labels, --tags: as gcloud takes them
#   --project PROJECT    default: gcloud's
#   --dry-run            print the commands and run none
#
# Without --type, a pod that was created before is created again with the same options. A pod that is there already is
# left alone. A request that is not granted is withdrawn, also on Ctrl-C, so that nothing is left that costs.
# Exit status: 0 ready; 2 wrong options, no quota or no permission; 69 no capacity; 75 gcloud failed.
#
# Example: create.sh tulu --type v5p-128 --zone us-east5-a,us-central1-a --spot
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "type= spot reserved reservation= wait= rounds= pause= poll= runtime= network= subnetwork= service-account= labels= tags=" "$@"

zones=$OPT_zone OPT_zone=${OPT_zone%%,*}
need_pod
if [[ -z ${OPT_type:-} && -s $MEMORY/create ]]; then
  mapfile -t again <"$MEMORY/create"
  rm -rf "$SCRATCH"
  exec bash "$0" "$NAME" "${again[@]}" "${GIVEN[@]}"
fi
[[ -n ${OPT_type:-} ]] || die $USER_ERROR "which type? give --type, such as v5p-8"
wait=${OPT_wait:-900} rounds=${OPT_rounds:-10} pause=${OPT_pause:-30} poll=${OPT_poll:-15}
for option in wait rounds pause poll; do number "$option" "${!option}"; done
IFS=, read -ra zones <<<"${zones:-$ZONE}"
(( ${OPT_spot:-0} + ${OPT_reserved:-0} + (${#OPT_reservation} > 0) < 2 )) ||
  die $USER_ERROR "give one of --spot, --reserved and --reservation"
facts=$(python -m easylm_jax.plan.cost describe "$OPT_type") || exit $USER_ERROR
read -r accelerator runtime chips <<<"$facts"

track=()
flags=("--accelerator-type=$accelerator" "--runtime-version=${OPT_runtime:-$runtime}" "--node-id=$NAME"
  "--valid-until-duration=${wait%.*}s" --quiet)
[[ -z ${OPT_spot:-} ]] || flags+=(--spot)
[[ -z ${OPT_reserved:-} ]] || flags+=(--reserved)
[[ -z ${OPT_reservation:-} ]] || { flags+=("--reservation=$OPT_reservation"); track=(alpha); }
for option in network subnetwork service-account labels tags; do
  variable=OPT_${option//-/_}
  [[ -z ${!variable:-} ]] || flags+=("--$option=${!variable}")
done

withdraw() { ask compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet; }
# shellcheck disable=SC2317,SC2329 # called by a trap
interrupted() {
  trap - INT TERM
  say "withdrawing the request in $ZONE"
  withdraw || say "error: could not withdraw it: $WHY; run delete.sh $NAME"
  exit 130
}

# try: 0 ready; else the reason is in WHY and its kind in KIND.
try() {
  look
  if [[ -n $OPT_dry_run ]]; then
    ask "${track[@]}" compute tpus queued-resources create "$NAME" "${WHERE[@]}" "${flags[@]}"
    return 0
  fi
  case $POD in
    READY)
      [[ $TYPE == "$accelerator" ]] || die $USER_ERROR "$NAME exists already and is a $TYPE, not a $accelerator"
      return 0
      ;;
    ABSENT) ;;
    FAILED | SUSPENDED | SUSPENDING | PREEMPTED | TERMINATED)
      say "removing $NAME, which is $POD"
      withdraw || [[ $KIND == absent ]] || return 1
      ;;
  esac
  trap interrupted INT TERM
  if [[ $POD != WAITING_FOR_RESOURCES && $POD != PROVISIONING && $POD != CREATING ]]; then
    say "asking for $accelerator ($chips chips) in $ZONE"
    ask "${track[@]}" compute tpus queued-resources create "$NAME" "${WHERE[@]}" "${flags[@]}" || return 1
  fi
  local begun=$SECONDS
  while :; do
    look
    case $POD in
      READY) return 0 ;;
      FAILED | SUSPENDED | ABSENT)
        withdraw || true
        WHY="the request was $POD" KIND=capacity
        return 1
        ;;
    esac
    if ((SECONDS - begun >= ${wait%.*})); then
      withdraw || die "$(status_of)" "could not withdraw the request: $WHY; run delete.sh $NAME"
      WHY="no capacity within $wait s" KIND=capacity
      return 1
    fi
    sleep "$poll" &
    wait $!
  done
}

# A pod of this name may be left, preempted, in the zone where it was last.
if [[ -z $OPT_dry_run && -s $MEMORY/zone ]]; then
  OPT_zone=$(<"$MEMORY/zone")
  find_zone
  WHERE[0]="--zone=$ZONE"
  look
  if [[ $POD == READY ]]; then zones=("$ZONE"); elif [[ $POD != ABSENT ]]; then
    say "removing $NAME, which is $POD in $ZONE"
    withdraw || [[ $KIND == absent ]] || die "$(status_of)" "$NAME could not be removed: $WHY"
  fi
fi

for ((round = 1; round <= rounds; round++)); do
  reasons="" hopeless=1
  for one in "${zones[@]}"; do
    OPT_zone=$one
    find_zone
    WHERE[0]="--zone=$ZONE"
    if try; then
      remember zone "$one"
      remember create "--zone=$(IFS=,; echo "${zones[*]}")" "--type=$OPT_type" ${OPT_spot:+--spot} ${OPT_reserved:+--reserved} \
        "--wait=$wait" "--rounds=$rounds" "--pause=$pause" "--poll=$poll" \
        ${OPT_reservation:+"--reservation=$OPT_reservation"} ${OPT_runtime:+"--runtime=$OPT_runtime"} \
        ${OPT_network:+"--network=$OPT_network"} ${OPT_subnetwork:+"--subnetwork=$OPT_subnetwork"} \
        ${OPT_service_account:+"--service-account=$OPT_service_account"} ${OPT_labels:+"--labels=$OPT_labels"} \
        ${OPT_tags:+"--tags=$OPT_tags"} ${OPT_project:+"--project=$OPT_project"}
      [[ -n $OPT_dry_run ]] || say "$NAME is ready in $one: $accelerator, $chips chips"
      exit 0
    fi
    trap - INT TERM
    reasons+="${reasons:+; }$one: $WHY"
    [[ $KIND == quota || $KIND == user ]] || hopeless=0
    say "$one: $WHY"
  done
  ((!hopeless)) || die $USER_ERROR "no zone grants $accelerator to this project ($reasons); ask for quota: https://cloud.google.com/tpu/docs/quota"
  if ((round < rounds)); then
    say "trying again in $pause s"
    sleep "$pause"
    pause=$(awk -v p="$pause" 'BEGIN { print (2 * p > 1800 ? 1800 : 2 * p) }')
  fi
done
die $UNAVAILABLE "no zone has $accelerator now ($reasons)"
