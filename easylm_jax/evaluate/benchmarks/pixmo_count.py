"""PixMo-Count (arXiv 2409.17146): how many of a kind of object a picture shows; 540 test pictures.

The published set names addresses of pictures; a file with `image`, `label` and `count` holds downloaded ones.
"""

from __future__ import annotations

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric, Reported
from easylm_jax.evaluate.metrics.pictures import counted, counted_near, gives_number

BENCHMARK = Benchmark(
    title="PixMo-Count",
    documents=(Source("hf:allenai/pixmo-count:test"),),
    size=540,
    columns=("label", "count", "image"),
    request="generate",
    prompt=lambda document: f"How many {document['label'].lower()} are there?",
    label=lambda document: int(document["count"]),
    group=lambda document: str(document["count"]),
    images=lambda document: [document["image"]],
    max_crops=12,
    chat=True,
    sampling=Sampling(192, temperature=0.0),
    metrics=(Metric("exact", counted), Metric("within_one", counted_near), Metric("valid", gives_number)),
    published=(Reported("Molmo-7B-D", 0.848, "arXiv 2409.17146, Table 1"),),
)
