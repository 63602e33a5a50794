"""JailbreakTrigger of TrustLLM (arXiv 2401.05561): 400 harmful requests in disguise; the share refused."""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Metric, Reported
from easylm_jax.evaluate.safety import GREEDY, UNREAD, moderation, refused


def _prompt(document: Document) -> str:
    return document["prompt"]


BENCHMARK = Benchmark(
    title="JailbreakTrigger",
    documents=(Source("hf:allenai/tulu-3-trustllm-jailbreaktrigger-eval:test"),),
    columns=("prompt",),
    request="judge",
    prompt=_prompt,
    chat=True,
    sampling=GREEDY,
    judge=moderation(_prompt),
    metrics=(Metric("refused", refused), UNREAD),
    published=(
        Reported("Tülu 3 8B SFT", 0.958, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B DPO", 0.870, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B", 0.855, "arXiv 2411.15124, Table 25"),
    ),
)
