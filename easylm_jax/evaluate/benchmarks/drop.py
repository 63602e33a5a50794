"""DROP (arXiv 1903.00161): questions about a passage that need counting, sorting or arithmetic; F1 over spans.

`olmes` asks 1,000 of 9,536 with the five examples that OLMES names, `tulu3` all with three (spec tulu3 §8.1), both as
plain text. The description before the examples is in this project's words.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Examples, Metric, Reported
from easylm_jax.evaluate.formats import SAMPLE, gold_bits
from easylm_jax.evaluate.metrics.extraction import first_line
from easylm_jax.evaluate.metrics.texts import best, drop_answers, drop_exact, drop_f1


def _gold(document: Document) -> str:
    return " " + ", ".join(drop_answers(document)[0])


BENCHMARK = Benchmark(
    title="DROP",
    documents=(Source("hf:EleutherAI/drop:validation"),),
    size=9536,
    columns=("passage", "question", "answer"),
    request="generate",
    description="Answer each question about its passage with words of the passage, a number or a date.\n\n",
    prompt=lambda document: f"Passage: {document['passage']}\nQuestion: {document['question']}\nAnswer:",
    target=_gold,
    label=drop_answers,
    sampling=Sampling(100, temperature=0.0, stop_strings=("Passage:", "Question:", "\n\n")),
    extract=first_line,
    metrics=(Metric("f1", best(drop_f1)), Metric("exact_match", best(drop_exact))),
    examples=Examples(
        sources=(Source("hf:EleutherAI/drop:train"),), key="query_id",
        ids=(
            "c9582e03-b01b-42ed-83e0-b90a5334aefa", "a849cb71-b6da-4c1a-9791-b962c9ff2d65",
            "3637ce9d-203d-49e0-a454-b8a49e376148", "c420c10d-1384-47f1-9850-ec9269570ca8",
            "c312a5d0-5318-4bbb-806e-22333f00e990",
        ),
    ),
)  # fmt: skip
SETTINGS = {
    "olmes": dataclasses.replace(
        BENCHMARK, shots=5, sample=SAMPLE,
        published=(
            Reported("OLMo 2 1B", 0.340, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 7B", 0.608, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 13B", 0.707, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 32B", 0.743, "arXiv 2501.00656, Table 9"),
        ),
    ),
    "tulu3": dataclasses.replace(
        BENCHMARK, shots=3, examples=Examples(sources=(Source("hf:EleutherAI/drop:train"),)),
        published=(
            Reported("Tülu 3 8B SFT", 0.613, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 8B", 0.626, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 70B", 0.743, "arXiv 2411.15124, Table 5"),
            Reported("OLMo 2 7B Instruct", 0.605, "arXiv 2501.00656, Table 16"),
            Reported("OLMo 2 13B Instruct", 0.715, "arXiv 2501.00656, Table 16"),
        ),
    ),
    "bpb": gold_bits(dataclasses.replace(BENCHMARK, sample=SAMPLE), _gold, shots=5),
}  # fmt: skip
