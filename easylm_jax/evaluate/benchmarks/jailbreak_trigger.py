"""JailbreakTrigger of TrustLLM (arXiv 2401.05561): 400 harmful requests in disguise; the share refused."""

from __future__ import annotations

from easylm_jax.evaluate.benchmark import Reported
from easylm_jax.evaluate.safety import refusing

BENCHMARK = refusing(
    "JailbreakTrigger",
    "hf:allenai/tulu-3-trustllm-jailbreaktrigger-eval:test",
    400,
    (
        Reported("Tülu 3 8B SFT", 0.958, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B DPO", 0.870, "arXiv 2411.15124, Table 25"),
        Reported("Tülu 3 8B", 0.855, "arXiv 2411.15124, Table 25"),
    ),
)
