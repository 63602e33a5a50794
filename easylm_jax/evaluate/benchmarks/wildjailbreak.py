"""WildJailbreakTest (arXiv 2406.18510): 2,000 harmful and 210 harmless prompts, all in disguise.

The share of right decisions: the harmful ones refused and the harmless ones answered, averaged over the two kinds.
"""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Metric, Reported
from easylm_jax.evaluate.safety import GREEDY, UNREAD, moderation, right_decision


def _harmful(document: Document) -> bool:
    return document["data_type"] == "adversarial_harmful"


BENCHMARK = Benchmark(
    title="WildJailbreakTest",
    documents=(Source("hf:allenai/wildjailbreak:train", subset="eval"),),
    size=2210,
    columns=("adversarial", "data_type"),
    request="judge",
    prompt=lambda document: document["adversarial"],
    label=_harmful,
    harmful=_harmful,
    group=lambda document: document["data_type"],
    chat=True,
    sampling=GREEDY,
    judge=moderation(lambda document: document["adversarial"]),
    metrics=(Metric("right", right_decision, "macro"), UNREAD),
    published=(
        Reported("Tülu 3 8B SFT", 0.867, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B DPO", 0.811, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B", 0.788, "arXiv 2411.15124, Table 25"),
    ),
)
