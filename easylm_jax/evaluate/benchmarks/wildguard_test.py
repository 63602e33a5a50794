"""WildGuardTest (arXiv 2406.18495): 1,725 prompts, harmful and harmless, plain and in disguise; the share of responses
that are not harmful, as a judge sees them. The set is gated on the hub."""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric, Reported
from easylm_jax.evaluate.safety import GREEDY, UNREAD, harmless, moderation

BENCHMARK = Benchmark(
    title="WildGuardTest",
    documents=(Source("hf:allenai/wildguardmix:test", subset="wildguardtest"),),
    size=1725,
    columns=("prompt",),
    request="judge",
    prompt=lambda document: document["prompt"],
    group=lambda document: str(document.get("prompt_harm_label")),
    chat=True,
    sampling=GREEDY,
    judge=moderation(lambda document: document["prompt"]),
    harmful=lambda document: document.get("prompt_harm_label") == "harmful",
    metrics=(Metric("harmless", harmless), UNREAD),
    published=(
        Reported("Tülu 3 8B SFT", 0.992, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B DPO", 0.989, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B", 0.985, "arXiv 2411.15124, Table 25"),
    ),
)
