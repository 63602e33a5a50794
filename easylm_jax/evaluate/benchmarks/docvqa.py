"""DocVQA (arXiv 2007.00398): questions about scanned documents, by edit distance; the labelled validation set."""

from __future__ import annotations

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric
from easylm_jax.evaluate.metrics.pictures import anls

BENCHMARK = Benchmark(
    title="DocVQA",
    documents=(Source("hf:lmms-lab/DocVQA:validation", subset="DocVQA"),),
    size=5349,
    columns=("question", "answers", "image"),
    request="generate",
    prompt=lambda document: f"doc_qa: {document['question']}",
    label=lambda document: list(document["answers"]),
    images=lambda document: [document["image"]],
    chat=True,
    sampling=Sampling(12, temperature=0.0),
    metrics=(Metric("anls", anls),),
)
