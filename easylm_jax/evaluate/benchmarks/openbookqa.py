"""OpenBookQA (arXiv 1809.02789): elementary science facts; OLMES's forms."""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.formats import Ranked

FORMS = Ranked(
    title="OpenBookQA",
    documents=(Source("hf:allenai/openbookqa:test", subset="main"),),
    size=500,
    columns=("question_stem", "choices", "answerKey"),
    ask=lambda document: f"Question: {document['question_stem']}",
    texts=lambda document: document["choices"]["text"],
    label=lambda document: list(document["choices"]["label"]).index(document["answerKey"].strip()),
    score="acc_unconditional",
    examples=(Source("hf:allenai/openbookqa:train", subset="main"),),
    ids=("7-584", "7-870", "9-732", "9-782", "8-72"),
    key="id",
)
BENCHMARK, SETTINGS = FORMS.settings()
