"""VQA v2 (arXiv 1612.00837): short answers of ten people about photographs; the validation set, which has labels."""

from __future__ import annotations

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric
from easylm_jax.evaluate.metrics.pictures import vqa_score

BENCHMARK = Benchmark(
    title="VQA v2",
    documents=(Source("hf:lmms-lab/VQAv2:validation"),),
    size=214_354,
    columns=("question", "answers", "image"),
    request="generate",
    prompt=lambda document: f"vqa2: {document['question']}",
    label=lambda document: [one["answer"] if isinstance(one, dict) else one for one in document["answers"]],
    images=lambda document: [document["image"]],
    chat=True,
    sampling=Sampling(12, temperature=0.0),
    metrics=(Metric("vqa_score", vqa_score),),
)
