"""The training recipe of WildGuard and its table (spec wildguard §5 and §6)."""

from __future__ import annotations

from easylm_jax.config import SFT, MakeData, OptimizerConfig
from easylm_jax.config.moderation import ModerationSet, ModerationTable
from models.config import Compute
from recipes.wildguard import data, published

BASE = "hf:mistralai/Mistral-7B-v0.3"

# Benchmarks that the hub has in this form; HarmBench's and SafeRLHF's rows need files (`ModerationSet.path`).
SETS = tuple(ModerationSet(name) for name in (
    "toxic_chat", "openai_moderation", "aegis", "simple_safety_tests", "wildguard_test", "beaver_tails",
    "xstest_response_harm", "xstest_response_refusal",
))  # fmt: skip


def mixture(name: str = "data", **how: str | bool | None) -> MakeData:
    """The conversations of WildGuardMix; `how` are arguments of `recipes.wildguard.data:write`."""
    return MakeData(name, function="recipes.wildguard.data:write", arguments=how)


def moderator(name: str = "moderator", source: str = "data", seed: int = 0) -> SFT:
    """Two epochs at 2e-6, batch 128, linear with 3 % warm-up, no decay, bfloat16.

    The numbers are from memory of the paper (spec wildguard §5), since its appendix was not at hand.
    """
    return SFT(
        name, init=BASE, data=data.spec(source), batch=128, epochs=2, seed=seed,
        optimizer=OptimizerConfig("2e-6 linear to 0 warmup 3%", weight_decay=0.0),
        compute=Compute(dtype="bfloat16", remat="full"),
    )  # fmt: skip


def table(moderators: tuple[str, ...], title: str) -> ModerationTable:
    """F1 of moderators on the public benchmarks, with the published numbers beside them."""
    return ModerationTable(
        "table", title=title, moderators=moderators, sets=SETS, compare=500, published=published.rows()
    )  # fmt: skip
