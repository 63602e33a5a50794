"""MATH-500: 500 problems of MATH (arXiv 2305.20050), with the grader of Spurious Rewards (spec spurious_rewards §6)."""

from __future__ import annotations

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric

BENCHMARK = Benchmark(
    title="MATH-500",
    documents=(Source("hf:HuggingFaceH4/MATH-500:test"),),
    size=500,
    columns=("problem", "answer"),
    request="generate",
    prompt=lambda document: document["problem"],
    label=lambda document: document["answer"],
    chat=True,
    sampling=Sampling(3072, temperature=0.0),
    metrics=(Metric("math", "math(style='spurious')"), Metric("python", "python")),
)
