"""HumanEval+ (arXiv 2305.01210): HumanEval with about 80 times as many tests; asked like HumanEval."""

from __future__ import annotations

import dataclasses
from typing import Any

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Reported
from easylm_jax.evaluate.benchmarks import humaneval

_PLUS: dict[str, Any] = {"title": "HumanEval+", "documents": (Source("hf:evalplus/humanevalplus:test"),), "size": 164}

BENCHMARK = dataclasses.replace(humaneval.BENCHMARK, **_PLUS)
SETTINGS = {
    "tulu3": dataclasses.replace(
        humaneval.SETTINGS["tulu3"], **_PLUS,
        published=(
            Reported("Tülu 3 8B SFT", 0.814, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 8B", 0.792, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 70B", 0.880, "arXiv 2411.15124, Table 5"),
        ),
    ),
    "tulu25": dataclasses.replace(humaneval.SETTINGS["tulu25"], **_PLUS),
}  # fmt: skip
