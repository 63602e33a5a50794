"""ChartQA (arXiv 2203.10244): questions about charts; numbers may be off by 5 %. Human and augmented questions."""

from __future__ import annotations

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric, Reported
from easylm_jax.evaluate.metrics.pictures import relaxed

BENCHMARK = Benchmark(
    title="ChartQA",
    documents=(Source("hf:lmms-lab/ChartQA:test"),),
    size=2500,
    columns=("question", "answer", "image"),
    request="generate",
    prompt=lambda document: f"chart_qa: {document['question']}",
    label=lambda document: str(document["answer"]),
    group=lambda document: str(document.get("type", "all")),
    images=lambda document: [document["image"]],
    chat=True,
    sampling=Sampling(12, temperature=0.0),
    metrics=(Metric("relaxed_accuracy", relaxed),),
    published=(Reported("Molmo-7B-D", 0.841, "arXiv 2409.17146, Table 1"),),
)
