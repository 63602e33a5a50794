"""OLMo 2 13B: RLVR by PPO in three stages: mixed, GSM8K, MATH (arXiv 2501.00656, Section 5, Tables 16 and 18).

Each stage initialises its value model from the reward model, and measures KL divergence from its own initial policy.

Departs from the paper: the learning-rate schedule is not published, so Tülu 3's is used; the episodes of Table 18 are
taken to be those of one stage; further differences are in `tulu3.base.ppo`.
"""

from easylm_jax.config import Entry, Recipe
from recipes.olmo2 import published
from recipes.tulu3.base import MIXED, barely_falling, ppo, rlvr_prompts, table

SFT, DPO = "hf:allenai/OLMo-2-1124-13B-SFT", "hf:allenai/OLMo-2-1124-13B-DPO"

# Name, prompts, initial policy, KL coefficient (Table 18).
STAGES = (("mixed", MIXED, DPO, 0.1), ("gsm8k", "RLVR-GSM", "mixed", 0.03), ("math", "RLVR-MATH", "gsm8k", 0.1))

recipe = Recipe(
    "olmo2-13b-rlvr",
    mesh="fsdp=8,cp=4,tp=2",
    decode_mesh="fsdp=8,tp=8",
    pod="v5p-128",  # 64 chips, 31 responses on 8 of them
    stages=(
        *(
            ppo(
                name,
                init=init,
                value="hf:allenai/OLMo-2-1124-13B-RM",  # or run:runs/olmo2-13b-rm/rm
                data=rlvr_prompts(prompts, DPO, "olmo"),
                lr=barely_falling(3e-7, 248),  # Table 18; the shape is Tülu 3's
                batch=248,
                episodes=200_000,  # Table 18, taken to be those of one stage
                kl=kl,
                remat="attention",
            )
            for name, prompts, init, kl in STAGES
        ),
        table(
            "OLMo 2 13B: RLVR by PPO",
            (
                Entry("SFT", (SFT,)),
                Entry("DPO", (DPO,), over="SFT"),
                Entry("mixed", ("mixed",), over="DPO"),
                Entry("GSM8K", ("gsm8k",), over="DPO"),
                Entry("RLVR", ("math",), over="DPO"),
            ),
            published.TABLE_16["13b"],
            DPO,
            "olmo",
        ),
    ),
)
