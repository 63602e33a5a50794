"""MATH (arXiv 2103.03874): 5,000 competition problems of seven types; the mean of the types.

`tulu3` shows Minerva's four examples as turns and accepts an answer in a box, in Minerva's sentence or between dollar
signs (spec tulu3 §8.1). The examples are read from a file with the columns `problem` and `solution`
(`--shots-from math:tulu3=FILE`); they are published with arXiv 2206.14858.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Examples, Metric, Reported
from easylm_jax.evaluate.formats import gold_bits

TYPES = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip

BENCHMARK = Benchmark(
    title="MATH",
    documents=tuple(Source("hf:EleutherAI/hendrycks_math:test", subset=name) for name in TYPES),
    size=5000,
    columns=("problem", "solution"),
    group=lambda document: str(document.get("type") or document["_subset"]),
    request="generate",
    prompt=lambda document: f"Problem:\n{document['problem']}\n\nSolution:",
    target=lambda document: f" {document['solution']}",
    label=lambda document: document["solution"],
    sampling=Sampling(1024, temperature=0.0, stop_strings=("Problem:",)),
    metrics=(Metric("exact_match_flex", "math", "macro"), Metric("minerva", "strict_math", "macro")),
    examples=Examples(sources=(Source("minerva_math_4shot.jsonl"),), read=lambda record: (record,)),
)
SETTINGS = {
    "tulu3": dataclasses.replace(
        BENCHMARK, shots=4, chat=True, multi_turn=True, sampling=Sampling(1024, temperature=0.0),
        published=(
            Reported("Tülu 3 8B SFT", 0.315, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 8B DPO", 0.420, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 8B", 0.437, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 70B", 0.630, "arXiv 2411.15124, Table 5"),
            Reported("OLMo 2 7B Instruct", 0.325, "arXiv 2501.00656, Table 16"),
            Reported("OLMo 2 13B Instruct", 0.392, "arXiv 2501.00656, Table 16"),
        ),
    ),
    "bpb": gold_bits(BENCHMARK, lambda document: f" {document['solution']}", shots=4),
}  # fmt: skip
