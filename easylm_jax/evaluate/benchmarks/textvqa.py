"""TextVQA (arXiv 1904.08920): questions about text in photographs, ten answers each; the validation set."""

from __future__ import annotations

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric, Reported
from easylm_jax.evaluate.metrics.pictures import vqa_score

BENCHMARK = Benchmark(
    title="TextVQA",
    documents=(Source("hf:lmms-lab/textvqa:validation"),),
    size=5000,
    columns=("question", "answers", "image"),
    request="generate",
    prompt=lambda document: f"text_vqa: {document['question']}",
    label=lambda document: list(document["answers"]),
    images=lambda document: [document["image"]],
    chat=True,
    sampling=Sampling(12, temperature=0.0),
    metrics=(Metric("vqa_score", vqa_score),),
    published=(Reported("Molmo-7B-D", 0.817, "arXiv 2409.17146, Table 1"),),
)
