"""GPQA (arXiv 2311.12022): 448 questions of graduate science that a search does not answer.

The options are put in an order that depends on the question alone. The set is gated on the hub.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Metric, Reported
from easylm_jax.evaluate.formats import asked_for_letter, letter_metric, letters, listed, with_options
from easylm_jax.evaluate.metrics.extraction import letter_after
from easylm_jax.evaluate.metrics.options import accuracy

RIGHT = "Correct Answer"
COLUMNS = (RIGHT, "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def _read(record: Document) -> Iterable[Document]:
    order = random.Random(record["Question"]).sample(range(4), 4)
    yield {
        "question": record["Question"].strip(), "label": order.index(0),
        "options": [record[COLUMNS[number]].strip() for number in order],
    }  # fmt: skip


BENCHMARK = Benchmark(
    title="GPQA",
    documents=(Source("hf:Idavidrein/gpqa:train", subset="gpqa_main"),),
    size=448,
    columns=("Question", *COLUMNS),
    read=_read,
    request="loglikelihood",
    prompt=lambda document: with_options(f"Question: {document['question']}", document["options"]),
    options=lambda document: letters(4),
    label=lambda document: document["label"],
    metrics=(Metric("acc", accuracy),),
)
SETTINGS = {
    "tulu3": dataclasses.replace(
        BENCHMARK, request="generate", options=None, chat=True, sampling=Sampling(2048, temperature=0.0),
        prompt=lambda document: (
            f"{asked_for_letter('A, B, C and D')}\n\nQuestion: {document['question']}\n"
            f"{listed(document['options'], '({letter}) {text}' + chr(10))}"
        ),
        label=lambda document: "ABCD"[document["label"]], extract=letter_after("the answer is", 4),
        metrics=(letter_metric(),),
        published=(
            Reported("Tülu 3 8B", 0.357, "arXiv 2411.15124, Table 33"),
            Reported("Tülu 3 70B", 0.480, "arXiv 2411.15124, Table 33"),
        ),
    ),
}  # fmt: skip
