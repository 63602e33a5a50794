"""CountBenchQA (arXiv 2302.12066, questions by PaliGemma): how many objects a picture shows, from two to ten."""

from __future__ import annotations

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric, Reported
from easylm_jax.evaluate.metrics.pictures import counted, counted_near, gives_number

BENCHMARK = Benchmark(
    title="CountBenchQA",
    documents=(Source("hf:vikhyatk/CountBenchQA:test"),),
    size=491,
    columns=("question", "number", "image"),
    request="generate",
    prompt=lambda document: document["question"],
    label=lambda document: int(document["number"]),
    group=lambda document: str(document["number"]),
    images=lambda document: [document["image"]],
    max_crops=12,
    chat=True,
    sampling=Sampling(192, temperature=0.0),
    metrics=(Metric("exact", counted), Metric("within_one", counted_near), Metric("valid", gives_number)),
    published=(Reported("Molmo-7B-D", 0.885, "arXiv 2409.17146, Table 1"),),
)
