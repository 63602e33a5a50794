"""Decoding compiled for TPU pods: the cache is updated where it lies, and so is the head."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
COMPILE = """
import json, sys
from easylm_jax.plan import topology
topology.configure_compiler_env()
import jax
from easylm_jax.runtime.compiler import peak_bytes
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.plan import programs, shapes
from models.config import Compute
topo = topology.parse(sys.argv[1])
mesh = make_mesh("tp=4", topo.devices())
config = shapes.published_config("allenai/OLMo-2-1124-7B-SFT").replace(layers=4)
source = programs.abstract_model(config, Compute(dtype="bfloat16"), mesh)
(decode,) = [it for it in programs.decoding(source, mesh, 16, 2048, 16, 1024, {}) if it.name == "decode"]
with jax.set_mesh(mesh):
    program = decode.lower().compile()
print(json.dumps({"text": program.as_text(), "peak": peak_bytes(program),
                  "arguments": program.memory_analysis().argument_size_in_bytes}))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no TPU compiler: pip install 'jax[tpu]'")
@pytest.mark.parametrize("pod", ["v5e:2x2", "v5p:2x2x1"])
def test_the_cache_is_written_in_place_and_never_copied(pod):
    """Of the device's 16 rows, 8 heads and 2,048 columns, nothing but the update of one column is ever made, and beside
    weights and cache there is less than a quarter of a cache."""
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, pod], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    cache = r"bf16\[4,16,8,2048,128\]"
    makers = re.findall(rf"= {cache}\S* ([a-z\-]+)\(", found["text"])
    assert set(makers) <= {"get-tuple-element", "parameter", "dynamic-update-slice"}, set(makers)
    assert makers.count("dynamic-update-slice") == 2
    assert "decode_attention" in found["text"]
    heads = re.findall(r"= bf16\[4096,100352\]\S* ([a-z\-]+)\(", found["text"])
    assert not heads, heads
    assert found["peak"] - found["arguments"] < 2 * 4 * 16 * 8 * 2048 * 128 * 2 / 4 + 2**28
