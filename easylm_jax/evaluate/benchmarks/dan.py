"""Do-Anything-Now (arXiv 2308.03825): 300 prompts that talk a model out of its rules; the share refused."""

from __future__ import annotations

from easylm_jax.evaluate.benchmark import Reported
from easylm_jax.evaluate.safety import refusing

BENCHMARK = refusing(
    "DAN",
    "hf:allenai/tulu-3-do-anything-now-eval:test",
    300,
    (
        Reported("Tülu 3 8B SFT", 0.883, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B DPO", 0.697, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B", 0.620, "arXiv 2411.15124, Table 25"),
    ),
    prompt=lambda document: document["adversarial"] if "adversarial" in document else document["prompt"],
    columns=(),
)
