"""Tülu 3 8B: RLVR by PPO on GSM8K, MATH and constraints (arXiv 2411.15124, Section 6, Tables 21 and 6).

About 100,000 of the 10 million episodes of the command's schedule, so the learning rate hardly decreases.

Departs from the paper: see `base.ppo`.
"""

from easylm_jax.config import Entry, Recipe
from recipes.tulu3 import published
from recipes.tulu3.base import MIXED, barely_falling, ppo, rlvr_prompts, table

SFT, DPO = "hf:allenai/Llama-3.1-Tulu-3-8B-SFT", "hf:allenai/Llama-3.1-Tulu-3-8B-DPO"

recipe = Recipe(
    "tulu3-8b-rlvr",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-64",  # 32 chips, 7 responses on each
    stages=(
        ppo(
            "ppo",
            init=DPO,
            value="hf:allenai/Llama-3.1-Tulu-3-8B-RM",  # or run:runs/tulu3-8b-rm/rm
            data=rlvr_prompts(MIXED, DPO),
            lr=barely_falling(3e-7, 224),  # Table 21
            batch=224,  # 7 learners with 32 each, docs/tulu3.md
            episodes=100_000,  # Table 21
            kl=0.05,  # Table 21
            seed=3,  # docs/tulu3.md
            remat="attention",
        ),
        table(
            "Tülu 3 8B: RLVR by PPO",
            (Entry("SFT", (SFT,)), Entry("DPO", (DPO,), over="SFT"), Entry("RLVR", ("ppo",), over="DPO")),
            published.TABLE_6,
            DPO,
        ),
    ),
)
