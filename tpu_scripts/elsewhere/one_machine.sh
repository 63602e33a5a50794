#!/usr/bin/env bash
# A run on one machine, one process with all its GPUs, started again after a crash, a hang or a signal.
#
# Usage: one_machine.sh RECIPE [FIELD=VALUE ...] [--out FOLDER]
#
# Uses .venv of the project, or $EASYLM_PYTHON. Ends when the run has finished (0), needs you (2) or was stopped with
# Ctrl-C (130); after $EASYLM_FAILURES failures in a row (default: 5; a run of an hour ends a row) it gives up (75).
#
# Example: one_machine.sh recipes/quickstart.py mesh=fsdp=-1
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${EASYLM_PYTHON:-$here/.venv/bin/python}
if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
  exit $((($# == 0) * 2))
fi
[[ -x $(command -v "$python") ]] || {
  echo "one_machine: error: there is no $python; run make setup, or name a Python with EASYLM_PYTHON" >&2
  exit 2
}
child="" stopped=""
stop() {
  stopped=1
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null
}
trap stop INT TERM

failures=0 pause=${EASYLM_PAUSE:-10}
while :; do
  began=$SECONDS
  PYTHONPATH=$here "$python" -m easylm_jax run "$@" &
  child=$!
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the run, which saves first
    wait "$child"
    status=$?
  done
  case $status in 0 | 2) exit "$status" ;; esac
  [[ -z $stopped ]] || exit 130
  ((SECONDS - began < 3600)) || failures=0
  ((++failures <= ${EASYLM_FAILURES:-5})) || {
    echo "one_machine: error: given up after $((failures - 1)) failures, the last with exit status $status" >&2
    exit 75
  }
  echo "one_machine: exit status $status; starting again in $pause s" >&2
  sleep "$pause"
  [[ -z $stopped ]] || exit 130
done
