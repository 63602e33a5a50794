"""30 problems of AIME 2024, asked as `amc`."""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmarks import amc

BENCHMARK = dataclasses.replace(
    amc.BENCHMARK, title="AIME 2024", documents=(Source("hf:HuggingFaceH4/aime_2024"),), size=30
)
