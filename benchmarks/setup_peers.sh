#!/usr/bin/env bash
# Builds the virtual environments of the codebases that benchmarks compare with: .peers/<name>, one for each.
#
#   benchmarks/setup_peers.sh              all of them
#   benchmarks/setup_peers.sh hf tunix     those named
#
# PYTHON names the interpreter (python3.11, or python3 where there is none); PIP_FLAGS is passed to pip. What is
# there already with the same versions is left as it is. Peers never share an environment with this project: their
# pins differ from ours.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The versions that docs/benchmarks.md was measured with.
requirements() {
  case "$1" in
    hf) echo "torch==2.13.0 transformers==5.23.0" ;;
    trl) echo "torch==2.13.0 transformers==5.23.0 trl==1.16.0 accelerate==1.15.0 datasets==5.2.0" ;;
    tunix) echo "google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 transformers==5.12.1" ;;
    lm_eval) echo "lm-eval[hf]==0.4.13 torch==2.13.0 transformers==5.23.0" ;;
    math_verify) echo "math-verify[antlr4-13-2]==0.9.0" ;;
    *) return 1 ;;
  esac
}

imports() {
  case "$1" in
    hf) echo "import torch, transformers; transformers.Olmo2ForCausalLM" ;;
    trl) echo "import torch, trl; trl.SFTTrainer" ;;
    tunix) echo "import jax; from tunix.models.llama3 import model" ;;
    lm_eval) echo "from lm_eval.models.huggingface import HFLM" ;;
    math_verify) echo "import math_verify" ;;
  esac
}

default_python() {
  # A version manager's shim can be on the path and still not run.
  if python3.11 -c 0 2>/dev/null; then echo python3.11; else echo python3; fi
}

build() {
  local name="$1" folder=".peers/$1" wanted
  wanted="$(requirements "$name")"
  if [ "$(cat "$folder/.versions" 2>/dev/null)" = "$wanted" ]; then
    echo "$folder is there: $wanted"
    return
  fi
  echo "Making $folder: $wanted"
  rm -rf "$folder"
  "${PYTHON:-$(default_python)}" -m venv "$folder"
  # shellcheck disable=SC2086 - the flags and the requirements are lists
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --compile ${PIP_FLAGS:-} $wanted
  echo "Trying $folder"
  "$folder/bin/python" -c "$(imports "$name")"
  echo "$wanted" >"$folder/.versions" # last, so that an interrupted build is made again
  echo "$folder is ready"
}

peers=("$@")
[ ${#peers[@]} -gt 0 ] || peers=(hf trl tunix lm_eval math_verify)
for name in "${peers[@]}"; do
  if ! requirements "$name" >/dev/null; then
    echo "setup_peers.sh: no peer called '$name'; there are hf, trl, tunix, lm_eval and math_verify" >&2
    exit 2
  fi
done
for name in "${peers[@]}"; do build "$name"; done
