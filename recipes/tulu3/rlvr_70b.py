"""Tülu 3 70B: RLVR by PPO with an 8B value model (arXiv 2411.15124, Section 6, Tables 21 and 5).

Departs from the paper: the KL coefficient is 0.07, as in Table 21, not the 0.7 of the text; further differences are in
`base.ppo`.
"""

from easylm_jax.config import Entry, Recipe
from recipes.tulu3 import published
from recipes.tulu3.base import MIXED, ppo, rlvr_prompts, table

SFT, DPO = "hf:allenai/Llama-3.1-Tulu-3-70B-SFT", "hf:allenai/Llama-3.1-Tulu-3-70B-DPO"

recipe = Recipe(
    "tulu3-70b-rlvr",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # the weights do not fit on one chip; each holds a fourth
    pod="v5p-256",  # 128 chips, 5 responses on each, in micro-batches of 1
    stages=(
        ppo(
            "ppo",
            init=DPO,
            value="hf:allenai/Llama-3.1-Tulu-3-8B-RM",  # docs/tulu3.md
            data=rlvr_prompts(MIXED, DPO),
            lr="1e-7 linear to 0 warmup 10% rounded down",  # Table 21
            batch=640,  # 40 learners with 16 each, docs/tulu3.md
            episodes=400_000,  # Table 21
            kl=0.07,  # Table 21; the text says 0.7
            accumulate=5,
            seed=8,  # docs/tulu3.md
            every=40,  # Section 6
            remat="full",
        ),
        table(
            "Tülu 3 70B: RLVR by PPO",
            (Entry("SFT", (SFT,)), Entry("DPO", (DPO,), over="SFT"), Entry("RLVR", ("ppo",), over="DPO")),
            published.TABLE_5,
            DPO,
        ),
    ),
)
