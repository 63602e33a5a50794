"""30 problems of AIME 2024, asked as `amc`.

Further column: the share of responses with Python.
"""

from __future__ import annotations

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric

BENCHMARK = Benchmark(
    title="AIME 2024",
    documents=(Source("hf:HuggingFaceH4/aime_2024"),),
    columns=("problem", "answer"),
    request="generate",
    prompt=lambda document: document["problem"],
    label=lambda document: document["answer"],
    chat=True,
    sampling=Sampling(3072, temperature=0.6),
    samples=8,
    metrics=(Metric("math", "math(style='spurious')"), Metric("python", "python")),
)
