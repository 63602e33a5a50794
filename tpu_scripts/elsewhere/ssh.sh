#!/usr/bin/env bash
# A run on several hosts over SSH, one process on each with all its GPUs: set up, launched, supervised, elastic.
#
# Usage: ssh.sh setup HOSTS [--code FOLDER] [--python 3.12] [--extra gpu]
#        ssh.sh launch | supervise HOSTS [--job NAME] [options] -- RECIPE [FIELD=VALUE ...] --out FOLDER
#        ssh.sh status | stop | logs HOSTS [--job NAME] [--lines N] [--now]
#
#   HOSTS            a file with a host on each line, as ssh knows it, and after a space its address for the others
#   --out FOLDER     a folder that all hosts share; without it ~/easylm/shared/runs
#   --elastic N      supervise: go on without hosts that do not answer, on at least N, and take them back later
#
# All options: ssh.sh --help. Needs keys that ssh finds without a password, and Python 3.11 here.
#
# Example: ssh.sh supervise hosts.txt --elastic 2 -- recipes/quickstart.py --out /nfs/runs
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
python -m easylm_jax.runtime.launch.hosts "$@"
