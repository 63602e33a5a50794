"""MBPP, sanitized (arXiv 2108.07732): 427 functions from a sentence and their tests; pass@1 and pass@10."""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Metric
from easylm_jax.evaluate.benchmarks.humaneval import SAMPLED
from easylm_jax.evaluate.formats import gold_bits
from easylm_jax.evaluate.metrics.extraction import code_block
from easylm_jax.evaluate.metrics.programs import mbpp_verdicts
from easylm_jax.evaluate.metrics.sampled import pass_at

FIRST = Metric("pass@1", pass_at(1, mbpp_verdicts), of_document=True)
TENTH = Metric("pass@10", pass_at(10, mbpp_verdicts), of_document=True)
PREFIX = "Here is the completed function:\n\n```python\n"


def asked(document: Document) -> str:
    """What a program is asked for: the sentence and one of its tests, which shows the function's name."""
    test = document["test_list"][0] if document.get("test_list") else ""
    return f"{document['prompt'].strip()}\n{test}".strip()


BENCHMARK = Benchmark(
    title="MBPP",
    documents=(
        Source("hf:google-research-datasets/mbpp:test", subset="sanitized"),
        Source("hf:google-research-datasets/mbpp:train", subset="sanitized"),
        Source("hf:google-research-datasets/mbpp:validation", subset="sanitized"),
        Source("hf:google-research-datasets/mbpp:prompt", subset="sanitized"),
    ),
    size=427,
    columns=("prompt",),
    request="generate",
    prompt=lambda document: f"{asked(document)}\n```python\n",
    label=lambda document: str(document["task_id"]),
    sampling=Sampling(512, temperature=0.0, stop_strings=("```",)),
    metrics=(FIRST,),
)
SETTINGS = {
    "chat": dataclasses.replace(
        BENCHMARK, chat=True, samples=20, sampling=SAMPLED, metrics=(TENTH, FIRST), extract=code_block,
        assistant_prefix=PREFIX, prompt=lambda document: f"Write this function in Python.\n\n{asked(document)}",
    ),
    "bpb": gold_bits(BENCHMARK, lambda document: document.get("code") or document["canonical_solution"]),
}  # fmt: skip
