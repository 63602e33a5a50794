#!/usr/bin/env bash
# Sets every worker up: the code, a Python of its own with what the project needs (uv), and a shared folder.
#
# Usage: setup.sh [NAME] [--mount SOURCE] [options]
#
#   --mount SOURCE       a folder that all workers share, as ~/easylm/shared: gs://BUCKET[/FOLDER] (by Cloud Storage
#                        FUSE; the bucket needs a hierarchical namespace) or HOST:/SHARE (NFS, such as Filestore).
#                        Needed on a pod of several workers: checkpoints, data caches and metrics are there.
#   --python VERSION     default: 3.12
#   --extra NAME         the extra of pyproject.toml that is installed (default: tpu)
#   --code FOLDER, --zone ZONE, --project PROJECT, --dry-run: as for sync.sh
#
# What is there already is kept, so it can be run again. Without --mount, that of the last time is taken.
#
# Example: setup.sh tulu --mount gs://my-bucket
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "mount= python= extra= code=" "$@"
need_pod
[[ -n ${OPT_mount:-} || ! -s $MEMORY/mount ]] || OPT_mount=$(<"$MEMORY/mount")
case ${OPT_mount:-} in
  "" | gs://?* | ?*:/*) ;;
  *) die $USER_ERROR "--mount must be gs://BUCKET or HOST:/SHARE, not $(quote "$OPT_mount")" ;;
esac

bash "$SCRIPTS/sync.sh" "$NAME" "${PASSED[@]}" ${OPT_code:+"--code=$OPT_code"}
must_on_workers "bash easylm/code/tpu_scripts/worker_setup.sh $(quote "${OPT_python:-3.12}" "${OPT_extra:-tpu}" "${OPT_mount:-}") 2>&1"
[[ -z ${OPT_mount:-} ]] || remember mount "$OPT_mount"
[[ -n $OPT_dry_run ]] || say "$NAME is set up"
