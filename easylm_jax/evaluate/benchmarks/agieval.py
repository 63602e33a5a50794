"""AGIEval, its eight English sets with options (arXiv 2304.06364): 2,646 questions; the mean of the sets.

`olmes` asks for a letter after one example, as base models are asked (spec olmo §16); the examples are read from a file
with the columns of the set and its name as `set` (`--shots-from agieval:olmes=FILE`). `tulu3` lets a chat model reason
first (spec tulu3 §8.2).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Examples, Metric, Reported
from easylm_jax.evaluate.formats import asked_for_letter, letter_metric, letters, listed, with_options
from easylm_jax.evaluate.metrics.extraction import letter_after
from easylm_jax.evaluate.metrics.options import accuracy

URL = "https://raw.githubusercontent.com/ruixiangcui/AGIEval/main/data/v1/"
SETS = ("aqua-rat", "gaokao-english", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "sat-en", "sat-math")
_LETTER = re.compile(r"^\s*\(?[A-E]\)\s*|^\s*[A-E][.]\s*")


def _read(record: Document) -> Iterable[Document]:
    """A question with its passage before it, and its options without their letters."""
    passage = f"{record['passage']}\n\n" if record.get("passage") else ""
    yield {
        "set": record.get("set") or record["_subset"], "label": record["label"],
        "question": passage + record["question"], "options": [_LETTER.sub("", one) for one in record["options"]],
    }  # fmt: skip


BENCHMARK = Benchmark(
    title="AGIEval English",
    documents=tuple(Source("hf:json:train", data_files=(f"{URL}{name}.jsonl",)) for name in SETS),
    size=2646,
    columns=("question", "options", "label"),
    read=_read,
    group=lambda document: document["set"],
    request="loglikelihood",
    prompt=lambda document: with_options(f"Question: {document['question']}", document["options"]),
    options=lambda document: letters(len(document["options"])),
    label=lambda document: "ABCDE".index(document["label"]),
    metrics=(Metric("acc", accuracy, "macro"),),
    examples=Examples(sources=(Source("agieval_1shot.jsonl"),), same_group=True),
)
SETTINGS = {
    "olmes": dataclasses.replace(
        BENCHMARK, shots=1,
        published=(
            Reported("OLMo 2 1B", 0.363, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 7B", 0.504, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 13B", 0.542, "arXiv 2501.00656, Table 9"),
            Reported("OLMo 2 32B", 0.610, "arXiv 2501.00656, Table 9"),
        ),
    ),
    "tulu3": dataclasses.replace(
        BENCHMARK, request="generate", options=None, chat=True, sampling=Sampling(2048, temperature=0.0),
        prompt=lambda document: (
            f"{asked_for_letter('the letters shown')}\n\nQuestion: {document['question']}\n"
            f"{listed(document['options'], '({letter}) {text}' + chr(10))}"
        ),
        label=lambda document: document["label"], extract=letter_after("the answer is", "ABCDE"),
        metrics=(letter_metric("macro"),),
        published=(
            Reported("Tülu 3 8B", 0.593, "arXiv 2411.15124, Table 33"),
            Reported("Tülu 3 70B", 0.750, "arXiv 2411.15124, Table 33"),
        ),
    ),
}  # fmt: skip
