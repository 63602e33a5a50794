"""83 problems of the AMC: the mean over 8 responses at temperature 0.6 (spec spurious_rewards §6).

Further column: the share of responses with Python.
"""

from __future__ import annotations

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric

BENCHMARK = Benchmark(
    title="AMC",
    documents=(Source("hf:AI-MO/aimo-validation-amc"),),
    size=83,
    columns=("problem", "answer"),
    request="generate",
    prompt=lambda document: document["problem"],
    label=lambda document: document["answer"],
    chat=True,
    sampling=Sampling(3072, temperature=0.6),
    samples=8,
    metrics=(Metric("math", "math(style='spurious')"), Metric("python", "python")),
)
