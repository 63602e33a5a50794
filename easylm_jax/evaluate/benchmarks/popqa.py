"""PopQA (arXiv 2212.10511): 14,267 questions about long-tail facts; right where an accepted answer is in the response.

`tulu3` shows fifteen examples as turns (spec tulu3 §8.1), read from a file with the columns of the set
(`--shots-from popqa:tulu3=FILE`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Examples, Metric, Reported
from easylm_jax.evaluate.formats import question
from easylm_jax.evaluate.metrics.texts import best, contains


def _read(record: Document) -> Iterable[Document]:
    """A record of the published set, or of a set that calls its columns `input` and `output`."""
    asked = record["question"] if "question" in record else record["input"]
    answers = record["possible_answers"] if "possible_answers" in record else record["output"]
    yield {"question": asked, "answers": json.loads(answers) if isinstance(answers, str) else list(answers)}


BENCHMARK = Benchmark(
    title="PopQA",
    documents=(Source("hf:akariasai/PopQA:test"),),
    size=14_267,
    columns=(),
    read=_read,
    request="generate",
    prompt=lambda document: question(document["question"]),
    target=lambda document: f" {document['answers'][0]}",
    label=lambda document: document["answers"],
    sampling=Sampling(15, temperature=0.0, stop_strings=("\n\n",)),
    metrics=(Metric("exact_match", best(contains)),),
    examples=Examples(sources=(Source("popqa_15shot.jsonl"),)),
)
SETTINGS = {
    "tulu3": dataclasses.replace(
        BENCHMARK, shots=15, chat=True, multi_turn=True,
        published=(
            Reported("Tülu 3 8B SFT", 0.293, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 8B", 0.291, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 70B", 0.465, "arXiv 2411.15124, Table 5"),
            Reported("OLMo 2 7B Instruct", 0.232, "arXiv 2501.00656, Table 16"),
            Reported("OLMo 2 13B Instruct", 0.288, "arXiv 2501.00656, Table 16"),
        ),
    ),
}  # fmt: skip
