"""Tülu 3.1 8B: RLVR by GRPO in place of PPO (allenai/open-instruct, docs/tulu3.md; arXiv 2411.15124, Table 6).

Two million episodes, as in the later packed run. The command of the released model has ten million, from which a
checkpoint was selected.

Departs from the release: two million episodes instead of ten; further differences are in `base.grpo`.
"""

from easylm_jax.config import Entry, Recipe
from recipes.tulu3 import published
from recipes.tulu3.base import MIXED, grpo, rlvr_prompts, table

SFT, DPO = "hf:allenai/Llama-3.1-Tulu-3-8B-SFT", "hf:allenai/Llama-3.1-Tulu-3-8B-DPO"

recipe = Recipe(
    "tulu3-8b-grpo",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-64",  # 32 chips, 12 responses of an update on each, in micro-batches of 3
    stages=(
        grpo(
            "grpo",
            init=DPO,
            data=rlvr_prompts(MIXED, DPO),
            steps=2_000_000 // (48 * 16),
            accumulate=4,
            remat="attention",
        ),
        table(
            "Tülu 3.1 8B: RLVR by GRPO",
            (
                Entry("SFT", (SFT,)),
                Entry("DPO", (DPO,), over="SFT"),
                Entry("RLVR", ("hf:allenai/Llama-3.1-Tulu-3-8B",), over="DPO"),
                Entry("GRPO", ("grpo",), over="DPO"),
            ),
            published.TABLE_6,
            DPO,
        ),
    ),
)
