#!/usr/bin/env bash
# Runs on a worker, called by setup.sh: worker_setup.sh PYTHON_VERSION EXTRA [MOUNT]. Can be run again.
set -euo pipefail
python_version=$1 extra=$2 mount=${3:-}
cd "$HOME/easylm"
fail() {
  echo "easylm: error: $*"
  exit 2
}
install_package() {
  if ! { sudo apt-get -qq update && sudo apt-get -qq -y install "$1"; }; then fail "$1 could not be installed"; fi
}

# uv brings a Python of its own: the images of TPU VMs have an older one.
export PATH="$HOME/.local/bin:$PATH"
if ! command -v uv >/dev/null; then
  curl -LsSf https://astral.sh/uv/install.sh | sh >/dev/null 2>&1 || fail "uv could not be installed; has this worker a way to the internet?"
fi
stamp=$(cat code/requirements.txt code/pyproject.toml <(echo "$python_version $extra") | cksum)
if [[ $(cat venv/.easylm-setup 2>/dev/null) != "$stamp" ]]; then
  uv venv --quiet --allow-existing --python "$python_version" venv || fail "no Python $python_version: uv says why above"
  uv pip install --quiet --python venv/bin/python --editable "./code[$extra]" || fail "the packages could not be installed: uv says why above"
  echo "$stamp" >venv/.easylm-setup
fi

mkdir -p shared
if [[ -n $mount ]] && ! mountpoint -q shared; then
  case $mount in
    gs://*)
      if ! command -v gcsfuse >/dev/null; then
        release=$(. /etc/os-release && echo "$VERSION_CODENAME")
        echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$release main" |
          sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
        curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
        install_package gcsfuse
      fi
      path=${mount#gs://}
      bucket=${path%%/*} folder=${path#"${path%%/*}"}
      folder=${folder#/}
      # No cache of metadata: workers have to see each other's files at once.
      gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 ${folder:+"--only-dir=$folder"} "$bucket" shared >/dev/null ||
        fail "the bucket $bucket could not be mounted; may the pod's service account write to it?"
      echo "$mount" >shared.source # by which --out gs://... finds it (easylm_jax/runtime/mounts.py)
      ;;
    *)
      command -v mount.nfs >/dev/null || install_package nfs-common
      sudo mount -t nfs -o hard,nconnect=4 "$mount" shared || fail "$mount could not be mounted"
      ;;
  esac
fi
touch shared/.easylm-writable 2>/dev/null || fail "this worker cannot write to its shared folder"
echo "set up"
