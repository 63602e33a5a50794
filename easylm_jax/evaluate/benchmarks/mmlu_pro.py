"""MMLU-Pro (arXiv 2406.01574): 12,032 questions of 14 categories with up to ten options; the mean of the categories.

`olmes` asks base models for a letter after five examples of the category (the validation set); `tulu3` lets a chat
model reason first (spec tulu3 §8.2).
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Examples, Metric, Reported
from easylm_jax.evaluate.formats import asked_for_letter, letter_metric, letters, listed, with_options
from easylm_jax.evaluate.metrics.extraction import letter_after
from easylm_jax.evaluate.metrics.options import accuracy

LETTERS = "ABCDEFGHIJ"

BENCHMARK = Benchmark(
    title="MMLU-Pro",
    documents=(Source("hf:TIGER-Lab/MMLU-Pro:test"),),
    size=12_032,
    columns=("question", "options", "answer_index", "category"),
    group=lambda document: document["category"],
    request="loglikelihood",
    prompt=lambda document: with_options(f"Question: {document['question']}", document["options"]),
    options=lambda document: letters(len(document["options"])),
    label=lambda document: int(document["answer_index"]),
    metrics=(Metric("acc", accuracy, "macro"),),
    examples=Examples(sources=(Source("hf:TIGER-Lab/MMLU-Pro:validation"),), same_group=True),
)
SETTINGS = {
    "olmes": dataclasses.replace(
        BENCHMARK, shots=5,
        published=(
            Reported("OLMo 2 1B", 0.161, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 7B", 0.310, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 13B", 0.351, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 32B", 0.433, "arXiv 2501.00656, Table 9"),
        ),
    ),
    "tulu3": dataclasses.replace(
        BENCHMARK, request="generate", options=None, chat=True, sampling=Sampling(2048, temperature=0.0),
        prompt=lambda document: (
            f"{asked_for_letter('the letters shown')}\n\nQuestion: {document['question']}\n"
            f"{listed(document['options'], '({letter}) {text}' + chr(10))}"
        ),
        label=lambda document: LETTERS[int(document["answer_index"])],
        extract=letter_after("the answer is", LETTERS), metrics=(letter_metric("macro"),),
        published=(
            Reported("Tülu 3 8B", 0.443, "arXiv 2411.15124, Table 33"),
            Reported("Tülu 3 70B", 0.658, "arXiv 2411.15124, Table 33"),
        ),
    ),
}  # fmt: skip
