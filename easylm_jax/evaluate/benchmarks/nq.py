"""Natural Questions, open domain (arXiv 1906.00300): 3,610 questions with short answers; F1 over words.

`olmes` asks 1,000 with the five examples that OLMES names, which are found by digests of their questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Examples, Metric, Reported
from easylm_jax.evaluate.formats import SAMPLE, digest, gold_bits, question
from easylm_jax.evaluate.metrics.extraction import first_line
from easylm_jax.evaluate.metrics.texts import best, squad_exact, squad_f1


def _digested(record: Document) -> Iterable[Document]:
    return ({**record, "_digest": digest(record["question"])},)


BENCHMARK = Benchmark(
    title="NaturalQuestions",
    documents=(Source("hf:google-research-datasets/nq_open:validation"),),
    size=3610,
    columns=("question", "answer"),
    request="generate",
    prompt=lambda document: question(document["question"]),
    target=lambda document: f" {document['answer'][0]}",
    label=lambda document: list(document["answer"]),
    sampling=Sampling(50, temperature=0.0, stop_strings=("Question:", "\n\n")),
    extract=first_line,
    metrics=(Metric("f1", best(squad_f1)), Metric("exact_match", best(squad_exact))),
    examples=Examples(
        sources=(Source("hf:google-research-datasets/nq_open:train"),), key="_digest", read=_digested,
        ids=("985e871060d2", "9840d0685d9d", "2d972f5453a1", "02fe42241d35", "ff9e84450ebe"),
    ),
)  # fmt: skip
SETTINGS = {
    "olmes": dataclasses.replace(
        BENCHMARK, shots=5, sample=SAMPLE,
        published=(
            Reported("OLMo 2 1B", 0.208, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 7B", 0.369, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 13B", 0.467, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 32B", 0.502, "arXiv 2501.00656, Table 9"),
        ),
    ),
    "bpb": gold_bits(dataclasses.replace(BENCHMARK, sample=SAMPLE), lambda d: f" {d['answer'][0]}", shots=5),
}  # fmt: skip
