"""OLMo 2 7B: RLVR by PPO as in Tülu 3 (arXiv 2501.00656, Section 5, Tables 16 and 18).

Departs from the paper: the KL coefficient is 0.05, as in Table 18, not the 0.07 of the text; the learning-rate schedule
is not published, so Tülu 3's is used; further differences are in `tulu3.base.ppo`.
"""

from easylm_jax.config import Entry, Recipe
from recipes.olmo2 import published
from recipes.tulu3.base import MIXED, barely_falling, ppo, rlvr_prompts, table

SFT, DPO = "hf:allenai/OLMo-2-1124-7B-SFT", "hf:allenai/OLMo-2-1124-7B-DPO"

recipe = Recipe(
    "olmo2-7b-rlvr",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-64",  # 32 chips, 7 responses on each
    stages=(
        ppo(
            "ppo",
            init=DPO,
            value="hf:allenai/OLMo-2-1124-7B-RM",  # or run:runs/olmo2-7b-rm/rm
            data=rlvr_prompts(MIXED, DPO, "olmo"),
            lr=barely_falling(4e-7, 224),  # Table 18; the shape is Tülu 3's
            batch=224,
            episodes=100_000,  # Table 18
            kl=0.05,  # Table 18; the text says 0.07
            remat="attention",
        ),
        table(
            "OLMo 2 7B: RLVR by PPO",
            (Entry("SFT", (SFT,)), Entry("DPO", (DPO,), over="SFT"), Entry("RLVR", ("ppo",), over="DPO")),
            published.TABLE_16["7b"],
            DPO,
            "olmo",
        ),
    ),
)
