# What the scripts share: arguments, dry runs, questions to gcloud, commands on all workers. Sourced, not run.
# shellcheck shell=bash
set -euo pipefail
if ((BASH_VERSINFO[0] < 4 || (BASH_VERSINFO[0] == 4 && BASH_VERSINFO[1] < 4))); then
  echo "$(basename "$0"): error: bash $BASH_VERSION is too old; 4.4 or newer is needed (macOS: brew install bash)" >&2
  exit 2
fi

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CODE=$(dirname "$SCRIPTS")
USER_ERROR=2 UNAVAILABLE=69 TEMPORARY=75   # easylm_jax/runtime/exit_status.py
COMMON_OPTIONS="zone= project= job= dry-run internal-ip"
# shellcheck disable=SC2034 # used by the scripts
NAME="" COMMAND=() PASSED=() GIVEN=()
SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/easylm-pod.XXXXXX")
trap 'rm -rf "$SCRATCH"' EXIT

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }

# die STATUS MESSAGE: one line, and the exit status.
die() {
  local status=$1
  shift
  say "error: $*"
  exit "$status"
}

# The comment at the top of the script that runs.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# quote WORD...: the words as a shell would read them again.
quote() {
  local word line=""
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then line+=" $word"; else line+=" '${word//\'/\'\\\'\'}'"; fi
  done
  printf '%s' "${line# }"
}

# begin "OPTIONS" ARGUMENTS: reads the arguments of a script. An option written `name=` takes a value. The value of
# `--name` is in OPT_name (1 for one without a value), the pod in NAME, what follows `--` in COMMAND.
# shellcheck disable=SC2034 # used by the scripts
begin() {
  local known=" $1 $COMMON_OPTIONS " option value
  shift
  for option in $known; do
    option=${option%=}
    printf -v "OPT_${option//-/_}" ''
  done
  NAME=${TPU_NAME:-}
  if (($#)) && [[ $1 != -* ]]; then
    NAME=$1
    shift
  fi
  GIVEN=("$@")
  while (($#)); do
    case $1 in
      -h | --help)
        usage
        exit 0
        ;;
      --)
        shift
        COMMAND=("$@")
        break
        ;;
      --?*) ;;
      *) die $USER_ERROR "unexpected $(quote "$1"); the pod's name comes first (see $(basename "$0") --help)" ;;
    esac
    option=${1#--}
    option=${option%%=*}
    if [[ $known == *" $option= "* ]]; then
      if [[ $1 == *=* ]]; then
        value=${1#*=}
      else
        (($# > 1)) || die $USER_ERROR "--$option needs a value"
        shift
        value=$1
      fi
      [[ -n $value ]] || die $USER_ERROR "--$option needs a value"
    elif [[ $known == *" $option "* && $1 != *=* ]]; then
      value=1
    else
      die $USER_ERROR "unknown option $(quote "$1") (see $(basename "$0") --help)"
    fi
    printf -v "OPT_${option//-/_}" '%s' "$value"
    shift
  done
  OPT_job=${OPT_job:-run}
  [[ $OPT_job != */* && $OPT_job != .* ]] || die $USER_ERROR "job name $(quote "$OPT_job") must be usable as the name of a folder"
  # For scripts that call other scripts.
  [[ -z $OPT_project ]] || PASSED+=("--project=$OPT_project")
  [[ -z $OPT_zone ]] || PASSED+=("--zone=$OPT_zone")
  [[ -z $OPT_internal_ip ]] || PASSED+=(--internal-ip)
  [[ -z $OPT_dry_run ]] || PASSED+=(--dry-run)
}

# A number that is given as an option: number NAME VALUE
number() { [[ $2 =~ ^[0-9]+(\.[0-9]+)?$ ]] || die $USER_ERROR "--$1 must be a number, not $(quote "$2")"; }

# The pod's name, gcloud, and where the pod is (WHERE). Google's rule for names is checked here, since its own answer
# to a wrong name is long.
need_pod() {
  [[ -n $NAME ]] || die $USER_ERROR "which pod? give its name first, or set TPU_NAME (see $(basename "$0") --help)"
  [[ $NAME =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] ||
    die $USER_ERROR "a pod cannot be called $(quote "$NAME"): use lower-case letters, digits and hyphens, a letter first"
  MEMORY=${EASYLM_PODS:-${XDG_STATE_HOME:-$HOME/.local/state}/easylm/pods}/$NAME   # what create and setup were given
  need_gcloud
  find_zone
  WHERE=("--zone=$ZONE")
  [[ -z $OPT_project ]] || WHERE+=("--project=$OPT_project")
  SSH=()
  [[ -z $OPT_internal_ip ]] || SSH+=(--internal-ip)
}

need_gcloud() {
  [[ -n $OPT_dry_run ]] || command -v gcloud >/dev/null ||
    die $USER_ERROR "gcloud is not on the PATH; install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"
}

# ZONE: as given, else that in which create.sh found the pod, else gcloud's default.
find_zone() {
  ZONE=$OPT_zone
  [[ -n $ZONE || ! -s $MEMORY/zone ]] || ZONE=$(<"$MEMORY/zone")
  [[ -n $ZONE || -n $OPT_dry_run ]] || ZONE=$(gcloud config get compute/zone 2>/dev/null || true)
  [[ -n $ZONE || -z $OPT_dry_run ]] || ZONE=ZONE
  [[ -n $ZONE ]] || die $USER_ERROR "in which zone is $NAME? give --zone"
  [[ $ZONE =~ ^[A-Za-z0-9-]+$ ]] || die $USER_ERROR "$(quote "$ZONE") is no zone; one looks like us-east5-a"
}

# ask ARGUMENTS: runs gcloud. What it prints is in OUT; where it fails, the reason in one line is in WHY and its kind in
# KIND (absent, quota, capacity, user, other). With --dry-run it only prints the command, and OUT is empty.
ask() {
  OUT="" WHY="" KIND=""
  if [[ -n $OPT_dry_run ]]; then
    quote gcloud "$@"
    echo
    return 0
  fi
  local status=0
  OUT=$(gcloud "$@" 2>"$SCRATCH/errors" </dev/null) || status=$?
  ((status)) || return 0
  WHY=$(tr -s '\n\t ' ' ' <"$SCRATCH/errors" | sed 's/.*ERROR: //' | cut -c -400)
  case $WHY in
    *NOT_FOUND* | *"was not found"* | *"not found"*) KIND=absent ;;
    *[Qq]uota*) KIND=quota ;;
    *capacity* | *RESOURCE_EXHAUSTED* | *stockout*) KIND=capacity ;;
    *PERMISSION_DENIED* | *INVALID_ARGUMENT* | *"auth login"* | *ssh-add* | *"core/project"*) KIND=user ;;
    *) KIND=other ;;
  esac
  return "$status"
}

# The exit status for a failure of `ask`.
status_of() {
  case $KIND in
    absent | quota | user) echo $USER_ERROR ;;
    capacity) echo $UNAVAILABLE ;;
    *) echo $TEMPORARY ;;
  esac
}

# look: the pod's state in POD (Google's name for it, or ABSENT), its type in TYPE, whether it is a spot one in SPOT,
# when it was created in CREATED, its workers in WORKERS.
# shellcheck disable=SC2034 # used by the scripts
look() {
  POD=ABSENT TYPE="" SPOT="" CREATED="" WORKERS=0
  if ask compute tpus tpu-vm describe "$NAME" "${WHERE[@]}" \
    "--format=csv[no-heading](state,acceleratorType,schedulingConfig.spot,createTime,networkEndpoints.len())"; then
    if [[ -n $OPT_dry_run ]]; then
      POD=READY TYPE=TYPE
      return
    fi
    IFS=, read -r POD TYPE SPOT CREATED WORKERS <<<"$OUT"
    return
  fi
  [[ $KIND == absent ]] || die "$(status_of)" "$NAME: $WHY"
  if ask compute tpus queued-resources describe "$NAME" "${WHERE[@]}" "--format=value(state.state)"; then
    POD=$OUT
  elif [[ $KIND != absent ]]; then
    die "$(status_of)" "$NAME: $WHY"
  fi
}

need_ready() {
  look
  case $POD in
    READY) ;;
    ABSENT) die $USER_ERROR "there is no pod $NAME in $ZONE; create it with tpu_scripts/create.sh, or give --zone" ;;
    *) die $TEMPORARY "the pod $NAME is $POD, not READY" ;;
  esac
}

# on_workers COMMAND [WORKER]: runs a command line on all workers, or on one. What each prints is in $ANSWERS/0.log, ….
on_workers() {
  ANSWERS=$SCRATCH/answers
  rm -rf "$ANSWERS"
  mkdir "$ANSWERS"
  ask compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" "${SSH[@]}" "--worker=${2:-all}" "--command=$1" \
    "--output-directory=$ANSWERS"
}

# must_on_workers COMMAND [WORKER]: the same; where it fails on any, the script ends with what that worker says.
must_on_workers() { on_workers "$@" || workers_failed; }

workers_failed() {
  local file line
  for file in "$ANSWERS"/*.log; do
    [[ -e $file ]] || continue
    line=$(grep -m 1 '^easylm: error: ' "$file" || true)
    [[ -z $line ]] || die $USER_ERROR "worker $(basename "$file" .log): ${line#easylm: error: }"
  done
  if [[ $WHY == *"return code [255]"* || $WHY == *"Connection refused"* || $WHY == *"Permission denied"* ]]; then
    die $TEMPORARY "no SSH connection to every worker of $NAME: $WHY"
  fi
  for file in "$ANSWERS"/*.log; do
    [[ -s $file && $WHY == *"worker $(basename "$file" .log) failed"* ]] || continue
    die $TEMPORARY "worker $(basename "$file" .log): $(tail -n 1 "$file" | cut -c -300)"
  done
  die "$(status_of)" "$NAME: $WHY"
}

# remember FILE WORD...: keeps what the pod was made with, so that it can be made again.
remember() {
  [[ -z $OPT_dry_run ]] || return 0
  mkdir -p "$MEMORY"
  printf '%s\n' "${@:2}" >"$MEMORY/$1"
}

# python ARGUMENTS: a Python of this machine, for what is not a matter of the shell. Standard library only.
python() {
  local candidate
  if [[ -z ${EASYLM_PYTHON:-} ]]; then
    for candidate in "$CODE/.venv/bin/python" python3.12 python3.13 python3.11 python3; do
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
      EASYLM_PYTHON=$candidate
      break
    done
  fi
  [[ -n ${EASYLM_PYTHON:-} ]] ||
    die $USER_ERROR "Python 3.11 or newer is needed on this machine; name one with EASYLM_PYTHON"
  PYTHONPATH=$CODE "$EASYLM_PYTHON" -S "$@"
}

WORKER="venv/bin/python -m easylm_jax.runtime.launch.worker"   # from ~/easylm/code
NOT_SET_UP='easylm: error: this worker is not set up; run tpu_scripts/setup.sh'
# on_job ACTION [WORDS]: the command line for `worker.py` on a worker; WORDS are quoted already.
on_job() {
  printf '%s' "cd -P easylm/code 2>/dev/null && [ -x ../venv/bin/python ] || { echo $(quote "$NOT_SET_UP"); exit 2; }; " \
    "exec ../$WORKER $1 ../jobs/$(quote "$OPT_job")${2:+ $2} 2>&1"
}
