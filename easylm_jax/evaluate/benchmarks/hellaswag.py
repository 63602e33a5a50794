"""HellaSwag (arXiv 1905.07830): the most plausible continuation of four; OLMES's forms, which ask 1,000 of 10,042."""

from __future__ import annotations

import re
from collections.abc import Sequence

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Document, Reported
from easylm_jax.evaluate.formats import SAMPLE, Ranked

_TITLE = re.compile(r"\.? \[title\]")
_MARK = re.compile(r"\[.*?\]")


def clean(text: str) -> str:
    """A text without WikiHow's marks: " [title]" ends a sentence, other marks go."""
    text = _TITLE.sub(". ", text.strip())
    return _MARK.sub("", text).replace("  ", " ")


def _shown(document: Document) -> str:
    """What is continued; a space stands at its end where nothing of the second sentence is given."""
    text = f"{document['activity_label']}: {document['ctx_a']} {document['ctx_b'].capitalize()}"
    return clean(text) + (" " if text.endswith(" ") else "")


def _endings(document: Document) -> Sequence[str]:
    return [clean(ending) for ending in document["endings"]]


FORMS = Ranked(
    title="HellaSwag",
    documents=(Source("hf:Rowan/hellaswag:validation"),),
    size=10_042,
    columns=("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    ask=_shown,
    rank=lambda document: _shown(document).rstrip(),
    texts=lambda document: [ending.strip() for ending in _endings(document)],
    option=lambda document, number: f" {_endings(document)[number]}",
    between="\nChoose the best continuation:",
    label=lambda document: int(document["label"]),
    score="acc_per_character",
    examples=(Source("hf:Rowan/hellaswag:train"),),
    ids=("49ec3d8ba6ef", "52494fed3e05", "664696e536b5", "fa2b13fe0ee6", "caa6a4323a15"),
    sample=SAMPLE,
    published=(
        Reported("OLMo 2 1B", 0.695, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 7B", 0.838, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 13B", 0.864, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 32B", 0.897, "arXiv 2501.00656, Table 9"),
        Reported("OLMoE-1B-7B", 0.800, "arXiv 2409.02060, Table 4"),
    ),
)
BENCHMARK, SETTINGS = FORMS.settings()
