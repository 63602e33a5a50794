"""Texts of several domains: bits per byte and perplexity of each and of all (Paloma, arXiv 2312.10523, asks likewise).

The published set is the C4 part of Paloma; any file with a column `text` and, for domains, `domain` can be asked.
"""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Benchmark
from easylm_jax.evaluate.metrics.rolling import BITS_PER_BYTE, PERPLEXITY

BENCHMARK = Benchmark(
    title="Bits per byte",
    documents=(Source("hf:allenai/paloma:val", subset="c4_en"),),
    columns=("text",),
    request="loglikelihood_rolling",
    prompt=lambda document: document["text"],
    group=lambda document: str(document.get("domain") or document.get("subdomain") or "all"),
    metrics=(BITS_PER_BYTE, PERPLEXITY),
)
