"""XSTest (arXiv 2308.01263): 250 harmless prompts that sound harmful, and 200 harmful contrasts.

`tulu25` gives the F1 of refusing the harmful ones (spec tulu25 §10), `tulu3` the share of right decisions, refusing or
answering (spec tulu3 §8.1). A judge (`--judge`) reads whether a response refuses; see `easylm_jax.evaluate.safety`.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Metric, Reported
from easylm_jax.evaluate.safety import GREEDY, UNREAD, f1, moderation, refusals, right_decision


def _harmful(document: Document) -> bool:
    """By the column `label`, or by the type: its contrasts are the harmful prompts."""
    if document.get("label") is not None:
        return str(document["label"]).lower() == "unsafe"
    return str(document["type"]).startswith("contrast")


BENCHMARK = Benchmark(
    title="XSTest",
    documents=(Source("hf:natolambert/xstest-v2-copy:prompts"),),
    size=450,
    columns=("prompt", "type"),
    request="judge",
    prompt=lambda document: document["prompt"],
    label=_harmful,
    harmful=_harmful,
    chat=True,
    sampling=GREEDY,
    judge=moderation(lambda document: document["prompt"]),
    metrics=(Metric("right", right_decision), UNREAD),
)
SETTINGS = {
    "tulu3": dataclasses.replace(
        BENCHMARK,
        published=(
            Reported("Tülu 3 8B SFT", 0.904, "arXiv 2411.15124, Table 25"),
            Reported("Tülu 3 8B", 0.933, "arXiv 2411.15124, Table 25"),
        ),
    ),
    "tulu25": dataclasses.replace(
        BENCHMARK, sampling=Sampling(2048, temperature=0.0),
        metrics=(Metric("f1", refusals, f1), Metric("right", right_decision), UNREAD),
        published=(Reported("OLMoE-1B-7B SFT", 0.841, "arXiv 2409.02060, Table 5"),),
    ),
}  # fmt: skip
