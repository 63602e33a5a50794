"""TriviaQA (arXiv 1705.03551): 7,993 questions of the Wikipedia part, without evidence; F1 over words.

`olmes` shows five examples: the first of the training set, since those that OLMES chose have no published number.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Examples, Metric, Reported
from easylm_jax.evaluate.formats import gold_bits, question
from easylm_jax.evaluate.metrics.extraction import first_line
from easylm_jax.evaluate.metrics.texts import best, squad_f1, trivia_exact

SUBSET = "rc.wikipedia.nocontext"


def _answers(document: Document) -> list[str]:
    answer = document["answer"]
    return list(dict.fromkeys([answer.get("value") or answer["aliases"][0], *answer["aliases"]]))


BENCHMARK = Benchmark(
    title="TriviaQA",
    documents=(Source("hf:mandarjoshi/trivia_qa:validation", subset=SUBSET),),
    size=7993,
    columns=("question", "answer"),
    request="generate",
    prompt=lambda document: question(document["question"]),
    target=lambda document: f" {_answers(document)[0]}",
    label=_answers,
    sampling=Sampling(50, temperature=0.0, stop_strings=("Question:", "\n\n")),
    extract=first_line,
    metrics=(Metric("f1", best(squad_f1)), Metric("exact_match", best(trivia_exact))),
    examples=Examples(sources=(Source("hf:mandarjoshi/trivia_qa:train", subset=SUBSET),)),
)
SETTINGS = {
    "olmes": dataclasses.replace(
        BENCHMARK, shots=5,
        published=(
            Reported("OLMo 2 1B", 0.547, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 7B", 0.780, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 13B", 0.819, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 32B", 0.880, "arXiv 2501.00656, Table 9"),
        ),
    ),
    "bpb": gold_bits(BENCHMARK, lambda document: f" {_answers(document)[0]}", shots=5),
}  # fmt: skip
