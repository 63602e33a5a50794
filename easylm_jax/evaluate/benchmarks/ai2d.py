"""AI2D (arXiv 1603.07396): questions about diagrams of grade-school science, boxes round labels transparent."""

from __future__ import annotations

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric, Reported
from easylm_jax.evaluate.metrics.pictures import choices, right_choice

BENCHMARK = Benchmark(
    title="AI2D",
    documents=(Source("hf:lmms-lab/ai2d-no-mask:test"),),
    size=3088,
    columns=("question", "options", "answer", "image"),
    request="generate",
    prompt=lambda document: f"ai2_diagram: {choices(document['question'], document['options'])}",
    label=lambda document: (int(document["answer"]), tuple(document["options"])),
    images=lambda document: [document["image"]],
    chat=True,
    sampling=Sampling(12, temperature=0.0),
    metrics=(Metric("accuracy", right_choice),),
    published=(Reported("Molmo-7B-D", 0.932, "arXiv 2409.17146, Table 1"),),
)
