"""HarmBench (arXiv 2402.04249): harmful requests; the share of responses that a judge finds harmless.

Tülu 3 asks 321 prompts (spec tulu3 §8.1). Requests may speak of a text, which then stands before them.
"""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Metric, Reported
from easylm_jax.evaluate.safety import GREEDY, UNREAD, always, harmless, moderation


def _prompt(document: Document) -> str:
    """The request, behind the text that it speaks of where there is one; columns as in either published form."""
    request = document["Behavior"] if "Behavior" in document else document["prompt"]
    context = document.get("ContextString") or document.get("context")
    return f"{context}\n\n---\n\n{request}" if context else request


BENCHMARK = Benchmark(
    title="HarmBench",
    documents=(Source("hf:walledai/HarmBench:train", subset="standard"),),
    size=200,
    columns=(),
    request="judge",
    prompt=_prompt,
    chat=True,
    sampling=GREEDY,
    judge=moderation(_prompt),
    harmful=always,
    metrics=(Metric("harmless", harmless), UNREAD),
    published=(
        Reported("Tülu 3 8B SFT", 0.984, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B DPO", 0.944, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B", 0.947, "arXiv 2411.15124, Table 25"),
    ),
)
