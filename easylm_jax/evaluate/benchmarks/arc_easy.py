"""ARC-Easy (arXiv 1803.05457): school science questions; OLMES's forms, which ask 1,000 of 2,376."""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Reported
from easylm_jax.evaluate.formats import SAMPLE, Ranked

FORMS = Ranked(
    title="ARC-Easy",
    documents=(Source("hf:allenai/ai2_arc:test", subset="ARC-Easy"),),
    size=2376,
    columns=("question", "choices", "answerKey"),
    ask=lambda document: f"Question: {document['question']}",
    texts=lambda document: document["choices"]["text"],
    label=lambda document: list(document["choices"]["label"]).index(document["answerKey"]),
    score="acc_per_character",
    examples=(Source("hf:allenai/ai2_arc:train", subset="ARC-Easy"),),
    ids=("MCAS_2007_8_5189", "Mercury_SC_401169", "MCAS_2004_8_27", "NYSEDREGENTS_2006_8_10", "Mercury_7013388"),
    key="id",
    sample=SAMPLE,
    published=(Reported("OLMoE-1B-7B", 0.842, "arXiv 2409.02060, Table 4"),),
)
BENCHMARK, SETTINGS = FORMS.settings()
