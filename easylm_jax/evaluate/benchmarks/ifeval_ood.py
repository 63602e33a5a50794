"""IFEval-OOD (arXiv 2411.15124, Section 7): prompts with instructions that IFEval does not have.

The set of the paper, with 52 kinds of instructions, became IFBench: 300 prompts with 58 kinds, which are asked here and
make another column, "IFEval-OOD (IFBench)".
"""

from __future__ import annotations

import dataclasses

from easylm_jax.evaluate.benchmark import Reported
from easylm_jax.evaluate.benchmarks import ifbench

BENCHMARK = dataclasses.replace(
    ifbench.BENCHMARK, title="IFEval-OOD (IFBench)",
    published=(
        Reported("Tülu 3 8B, 52 kinds", 0.243, "arXiv 2411.15124, Table 33"),
        Reported("Tülu 3 70B, 52 kinds", 0.278, "arXiv 2411.15124, Table 33"),
    ),
)  # fmt: skip
