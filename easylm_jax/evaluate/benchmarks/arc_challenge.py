"""ARC-Challenge (arXiv 1803.05457): school science questions that simple methods get wrong, with their options.

Asked as in OLMES (arXiv 2406.08446): the options' texts are ranked without being shown ("cloze", score normalised by
characters in the authors' in-loop evaluation, spec olmo §16), or shown with letters, of which one is chosen (`mc`).
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Examples, Metric
from easylm_jax.evaluate.metrics.options import accuracy, accuracy_per_character

HUB = "hf:allenai/ai2_arc"


def _letters(document: Document) -> list[str]:
    return [f" {chr(ord('A') + number)}" for number in range(len(document["choices"]["text"]))]


def _label(document: Document) -> int:
    return list(document["choices"]["label"]).index(document["answerKey"])


def _with_options(document: Document) -> str:
    texts = document["choices"]["text"]
    shown = "".join(f"{letter}. {text}\n" for letter, text in zip(_letters(document), texts, strict=True))
    return f"Question: {document['question']}\n{shown}Answer:"


BENCHMARK = Benchmark(
    title="ARC-Challenge",
    documents=(Source(f"{HUB}:test", subset="ARC-Challenge"),),
    columns=("question", "choices", "answerKey"),
    request="loglikelihood",
    prompt=lambda document: f"Question: {document['question']}\nAnswer:",
    options=lambda document: [f" {text}" for text in document["choices"]["text"]],
    unconditional="Answer:",
    label=_label,
    metrics=(Metric("acc_per_character", accuracy_per_character), Metric("acc", accuracy)),
    examples=Examples(sources=(Source(f"{HUB}:train", subset="ARC-Challenge"),)),
)

SETTINGS = {
    "mc": dataclasses.replace(
        BENCHMARK, prompt=_with_options, options=_letters, unconditional=None, metrics=(Metric("acc", accuracy),)
    ),
}
