"""MMMU (arXiv 2311.16502): college questions of 30 subjects with one to seven pictures; the validation set.

An answer that names no option is counted in `unresolved`, and is the nearest option by edits and not a random one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric, Reported, Response
from easylm_jax.evaluate.metrics.pictures import answer_of, choices, choose, exact

SUBJECTS = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science",
    "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design", "Diagnostics_and_Laboratory_Medicine",
    "Economics", "Electronics", "Energy_and_Power", "Finance", "Geography", "History", "Literature", "Manage",
    "Marketing", "Materials", "Math", "Mechanical_Engineering", "Music", "Pharmacy", "Physics", "Psychology",
    "Public_Health", "Sociology",
)  # fmt: skip
_PLACE = re.compile(r"<image \d+>")


def _options(document: Mapping[str, Any]) -> list[str]:
    options = document["options"]
    return [str(one) for one in (ast.literal_eval(options) if isinstance(options, str) else options)]


def _prompt(document: Mapping[str, Any]) -> str:
    question = _PLACE.sub("", document["question"]).strip()
    options = [_PLACE.sub("", option).strip() for option in _options(document)]
    return f"a_okvqa_mc: {choices(question, options)}" if options else f"vqa2: {question}"


def _right(document: Mapping[str, Any], response: Response) -> float:
    options = _options(document)
    if not options:
        golds = document["answer"]
        golds = ast.literal_eval(golds) if isinstance(golds, str) and golds.startswith("[") else [golds]
        return max(exact(str(gold), response) for gold in golds)
    return float(choose(response.texts[0], options) == ord(document["answer"]) - ord("A"))


def _unresolved(document: Mapping[str, Any], response: Response) -> float:
    options, said = _options(document), answer_of(response.texts[0])
    known = [option.lower() for option in options]
    return float(bool(options) and not re.fullmatch(r"\(?[A-Z][).:]?", said) and said.lower() not in known)


BENCHMARK = Benchmark(
    title="MMMU",
    documents=tuple(Source("hf:MMMU/MMMU:validation", subset=subject) for subject in SUBJECTS),
    size=900,
    columns=("question", "options", "answer", "image_1"),
    request="generate",
    prompt=_prompt,
    label=lambda document: document["answer"],
    group=lambda document: str(document.get("id", "all")).removeprefix("validation_").rpartition("_")[0] or "all",
    images=lambda document: [document[f"image_{i}"] for i in range(1, 8) if document.get(f"image_{i}") is not None],
    chat=True,
    sampling=Sampling(12, temperature=0.0),
    metrics=(
        Metric("accuracy", _right, of_document=True),
        Metric("unresolved", _unresolved, of_document=True, lower=True),
    ),
    published=(Reported("Molmo-7B-D", 0.453, "arXiv 2409.17146, Table 1"),),
)
