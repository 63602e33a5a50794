"""WinoGrande (arXiv 1907.10641): which of two nouns a gap stands for; OLMES's forms.

Ranked, each noun is put into the gap and what follows is scored: the continuations are equal, the contexts differ.
"""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Document, Reported
from easylm_jax.evaluate.formats import Ranked

GAP = "_"


def _nouns(document: Document) -> tuple[str, str]:
    return document["option1"], document["option2"]


def _before(document: Document) -> list[str]:
    start = document["sentence"].partition(GAP)[0]
    return [start + noun for noun in _nouns(document)]


FORMS = Ranked(
    title="WinoGrande",
    documents=(Source("hf:allenai/winogrande:validation", subset="winogrande_xl"),),
    size=1267,
    columns=("sentence", "option1", "option2", "answer"),
    ask=lambda document: f"Fill in the blank: {document['sentence'].replace(GAP, '___')}",
    texts=_nouns,
    label=lambda document: int(document["answer"]) - 1,
    rank=lambda document: _before(document)[int(document["answer"]) - 1],
    contexts=_before,
    option=lambda document, number: f" {document['sentence'].partition(GAP)[2].strip()}",
    score="acc",
    examples=(Source("hf:allenai/winogrande:train", subset="winogrande_xl"),),
    ids=("da2b1e184b6f", "54e54f6ba412", "17b444406e68", "7480df47cfa4", "9b35fa91ac8e"),
    published=(
        Reported("OLMo 2 1B", 0.665, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 7B", 0.772, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 13B", 0.815, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 32B", 0.830, "arXiv 2501.00656, Table 9"),
        Reported("OLMoE-1B-7B", 0.702, "arXiv 2409.02060, Table 4"),
    ),
)
BENCHMARK, SETTINGS = FORMS.settings()
