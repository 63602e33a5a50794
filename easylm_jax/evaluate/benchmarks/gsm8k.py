"""GSM8K (arXiv 2110.14168): 1,319 grade-school problems; the last number of the response is the answer.

The default is what the RLVR stages are evaluated on: no examples, a chat, greedy, 512 tokens (spec tulu3 §6.1).
"""

from __future__ import annotations

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Examples, Metric

BENCHMARK = Benchmark(
    title="GSM8K",
    documents=(Source("hf:openai/gsm8k:test", subset="main"),),
    columns=("question", "answer"),
    request="generate",
    prompt=lambda document: document["question"],
    target=lambda document: f" {document['answer']}",
    label=lambda document: document["answer"],
    chat=True,
    multi_turn=True,
    sampling=Sampling(512, temperature=0.0),
    metrics=(Metric("exact_match", "gsm8k"),),
    examples=Examples(sources=(Source("hf:openai/gsm8k:train", subset="main"),)),
)
