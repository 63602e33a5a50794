"""PIQA (arXiv 1911.11641): which of two ways reaches a goal; OLMES's forms, which ask 1,000 of 1,838."""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Reported
from easylm_jax.evaluate.formats import SAMPLE, Ranked

FORMS = Ranked(
    title="PIQA",
    documents=(Source("hf:baber/piqa:validation"),),
    size=1838,
    columns=("goal", "sol1", "sol2", "label"),
    ask=lambda document: f"Goal: {document['goal']}",
    texts=lambda document: (document["sol1"], document["sol2"]),
    label=lambda document: int(document["label"]),
    score="acc_per_character",
    examples=(Source("hf:baber/piqa:train"),),
    ids=("e87a39f7dc6b", "34a170c677ac", "c208496c9856", "dcd66b6a4239", "43c5d19e40f9"),
    sample=SAMPLE,
    published=(Reported("OLMoE-1B-7B", 0.798, "arXiv 2409.02060, Table 4"),),
)
BENCHMARK, SETTINGS = FORMS.settings()
