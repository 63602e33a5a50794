"""Do-Anything-Now (arXiv 2308.03825): 300 prompts that talk a model out of its rules; the share refused."""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Metric, Reported
from easylm_jax.evaluate.safety import GREEDY, UNREAD, moderation, refused


def _prompt(document: Document) -> str:
    return document["adversarial"] if "adversarial" in document else document["prompt"]


BENCHMARK = Benchmark(
    title="DAN",
    documents=(Source("hf:allenai/tulu-3-do-anything-now-eval:test"),),
    columns=(),
    request="judge",
    prompt=_prompt,
    chat=True,
    sampling=GREEDY,
    judge=moderation(_prompt),
    metrics=(Metric("refused", refused), UNREAD),
    published=(
        Reported("Tülu 3 8B SFT", 0.883, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B DPO", 0.697, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B", 0.620, "arXiv 2411.15124, Table 25"),
    ),
)
