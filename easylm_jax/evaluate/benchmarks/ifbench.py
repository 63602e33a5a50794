"""IFBench (arXiv 2507.02833): 300 prompts with 344 instructions of 58 kinds, asked and scored as `ifeval`."""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmarks import ifeval

BENCHMARK = dataclasses.replace(
    ifeval.BENCHMARK, title="IFBench", documents=(Source("hf:allenai/IFBench_test"),), size=300
)
