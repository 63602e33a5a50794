"""BBQ (arXiv 2110.08193): questions about two people of different groups, with and without enough context.

Besides accuracy, how often answers follow a stereotype in either kind of context (0 is no bias).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Metric, Response, Scored
from easylm_jax.evaluate.formats import letters, with_options
from easylm_jax.evaluate.metrics import bias
from easylm_jax.evaluate.metrics.options import accuracy


def _options(document: Document) -> list[str]:
    return [document[f"ans{number}"] for number in range(3)]


def _verdict(document: Document, response: Response) -> bias.Verdict:
    return bias.verdict(document, max(range(3), key=lambda number: response.logprobs[number]))


def _part(ambiguous: bool):
    def score(scored: Sequence[Scored]) -> tuple[float, float]:
        return bias.bias_score([one for one in scored if one.value.ambiguous == ambiguous])

    return score


BENCHMARK = Benchmark(
    title="BBQ",
    documents=(Source("hf:oskarvanderwal/bbq:test", subset="All"),),
    size=58_492,
    columns=("context", "question", "ans0", "ans1", "ans2", "label", "answer_info", "additional_metadata"),
    group=lambda document: document["category"],
    request="loglikelihood",
    prompt=lambda document: with_options(f"{document['context']} {document['question']}", _options(document)),
    options=lambda document: letters(3),
    label=lambda document: int(document["label"]),
    metrics=(
        Metric("acc", accuracy),
        Metric("bias_disambiguated", _verdict, _part(False), of_document=True, unit="bias score"),
        Metric("bias_ambiguous", _verdict, _part(True), of_document=True, unit="bias score"),
    ),
)
SETTINGS = {
    "rc": dataclasses.replace(
        BENCHMARK, options=lambda document: [f" {text}" for text in _options(document)],
        prompt=lambda document: f"{document['context']} {document['question']}\nAnswer:",
    )
}  # fmt: skip
