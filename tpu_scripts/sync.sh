#!/usr/bin/env bash
# Copies the project to every worker: the files that git does not ignore, as they are now, committed or not.
#
# Usage: sync.sh [NAME] [--code FOLDER] [--zone ZONE] [--project PROJECT] [--dry-run]
#
#   --code FOLDER        default: the project of this script
#
# A job that runs keeps the code that it was started with.
#
# Example: sync.sh tulu
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "code=" "$@"
need_pod
code=${OPT_code:-$CODE}
[[ -d $code/easylm_jax ]] || die $USER_ERROR "$(quote "$code") is not the project's folder (it has no easylm_jax)"
need_ready

archive=$SCRATCH/easylm-code.tar
if [[ -n $OPT_dry_run ]]; then
  version=VERSION
elif git -C "$code" rev-parse --git-dir >/dev/null 2>&1; then
  while IFS= read -r -d '' file; do
    [[ ! -e $code/$file ]] || printf '%s\0' "$file"
  done < <(git -C "$code" ls-files -z --cached --others --exclude-standard) >"$SCRATCH/files"
  tar -cf "$archive" -C "$code" --null -T "$SCRATCH/files"
else
  tar -cf "$archive" -C "$code" --exclude=./.venv* --exclude=./runs --exclude=__pycache__ .
fi
if [[ -z $OPT_dry_run ]]; then
  version=$(cksum <"$archive" | tr -s ' ' '-')
  gzip -1 "$archive"
fi
ask compute tpus tpu-vm scp "$archive.gz" "$NAME:easylm-code.tar.gz" "${WHERE[@]}" "${SSH[@]}" --worker=all ||
  die "$(status_of)" "the code could not be copied to every worker of $NAME: $WHY"
# The link is replaced last. The two versions before stay for jobs that run.
must_on_workers "set -e; mkdir -p easylm/jobs easylm/code-$version; tar -xzf easylm-code.tar.gz -C easylm/code-$version; \
rm easylm-code.tar.gz; touch easylm/code-$version; ln -sfn code-$version easylm/code; \
ls -dt easylm/code-* | tail -n +4 | xargs -r rm -rf"
[[ -n $OPT_dry_run ]] || say "the code is on every worker of $NAME"
