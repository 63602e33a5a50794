"""MBPP+ (arXiv 2305.01210): 378 problems of MBPP with 35 times as many tests; `tulu25` asks as spec tulu25 §10 says."""

from __future__ import annotations

import dataclasses
from typing import Any

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmarks import mbpp

_PLUS: dict[str, Any] = {"title": "MBPP+", "documents": (Source("hf:evalplus/mbppplus:test"),), "size": 378}

BENCHMARK = dataclasses.replace(mbpp.BENCHMARK, **_PLUS)
SETTINGS = {"tulu25": dataclasses.replace(mbpp.SETTINGS["chat"], **_PLUS)}
