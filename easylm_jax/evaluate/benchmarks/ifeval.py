"""IFEval (arXiv 2311.07911): 541 prompts with 834 instructions of 25 kinds, greedy, 2,048 tokens.

The score is prompt-level loose accuracy (spec tulu3 §8.1). The verifiers are those of IFBench's package, version `r26`.
"""

from __future__ import annotations

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric

BENCHMARK = Benchmark(
    title="IFEval",
    documents=(Source("hf:google/IFEval"),),
    size=541,
    columns=("prompt", "instruction_id_list", "kwargs"),
    request="generate",
    prompt=lambda document: document["prompt"],
    label=lambda document: document["instruction_id_list"],
    chat=True,
    sampling=Sampling(2048, temperature=0.0),
    metrics=(
        Metric("loose", "instructions('r26', 'loose', 'prompt')"),
        Metric("strict", "instructions('r26', 'strict', 'prompt')"),
        Metric("instructions", "instructions('r26', 'loose', 'count')", "ratio", over=len),
    ),
)
