"""MathVista (arXiv 2310.02255), testmini: mathematics in charts, figures and photographs.

The published protocol lets GPT-4 find the answer in a response; here it is the option or the number that the response
gives, so that numbers are comparable within this harness only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric, Response
from easylm_jax.evaluate.metrics.pictures import answer_of, choices, choose, exact

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _prompt(document: Mapping[str, Any]) -> str:
    options = document["choices"]
    return f"a_okvqa_mc: {choices(document['question'], options)}" if options else f"vqa2: {document['question']}"


def _right(document: Mapping[str, Any], response: Response) -> float:
    options, gold = document["choices"], str(document["answer"])
    if options:
        return float(options[choose(response.texts[0], options)] == gold)
    numbers, wanted = _NUMBER.findall(answer_of(response.texts[0]).replace(",", "")), _NUMBER.fullmatch(gold)
    if wanted is None:
        return exact(gold, response)
    digits = int(document.get("precision") or 0)
    return float(bool(numbers) and round(float(numbers[-1]), digits) == round(float(gold), digits))


BENCHMARK = Benchmark(
    title="MathVista",
    documents=(Source("hf:AI4Math/MathVista:testmini"),),
    size=1000,
    columns=("question", "choices", "answer", "decoded_image"),
    request="generate",
    prompt=_prompt,
    label=lambda document: str(document["answer"]),
    images=lambda document: [document["decoded_image"]],
    chat=True,
    sampling=Sampling(12, temperature=0.0),
    metrics=(Metric("accuracy", _right, of_document=True),),
)
