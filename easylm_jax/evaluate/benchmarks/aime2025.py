"""30 problems of AIME 2025, asked as `amc`; published after the models of the papers."""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmarks import amc

BENCHMARK = dataclasses.replace(
    amc.BENCHMARK, title="AIME 2025", documents=(Source("hf:math-ai/aime25:test"),), size=30
)
