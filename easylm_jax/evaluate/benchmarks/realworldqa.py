"""RealWorldQA (xAI, 2024): questions about everyday photographs; options, where there are some, stand in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric, Reported, Response
from easylm_jax.evaluate.metrics.pictures import choices, choose, exact

_OPTION = re.compile(r"^([A-Z])[.:)]\s*(.+)$", re.MULTILINE)
_HINT = re.compile(r"^Please answer .*$", re.MULTILINE)  # which Molmo's style tags replace


def _options(document: Mapping[str, Any]) -> list[str]:
    return [text.strip() for _, text in _OPTION.findall(document["question"])]


def _prompt(document: Mapping[str, Any]) -> str:
    question = _HINT.sub("", _OPTION.sub("", document["question"])).strip()
    options = _options(document)
    return f"a_okvqa_mc: {choices(question, options)}" if options else f"vqa2: {question}"


def accuracy(document: Mapping[str, Any], response: Response) -> float:
    """Whether the right option is meant, or the answer is the gold one in VQA's normal form."""
    options, gold = _options(document), str(document["answer"])
    if not options:
        return exact(gold, response)
    return float(choose(response.texts[0], options) == choose(gold, options))


BENCHMARK = Benchmark(
    title="RealWorldQA",
    documents=(Source("hf:lmms-lab/RealWorldQA:test"),),
    size=765,
    columns=("question", "answer", "image"),
    request="generate",
    prompt=_prompt,
    label=lambda document: str(document["answer"]),
    images=lambda document: [document["image"]],
    chat=True,
    sampling=Sampling(12, temperature=0.0),
    metrics=(Metric("accuracy", accuracy, of_document=True),),
    published=(Reported("Molmo-7B-D", 0.707, "arXiv 2409.17146, Table 1"),),
)
