"""OLMo 2 7B: the reward model that initialises the value models of RLVR (arXiv 2501.00656, Section 5).

Its settings are not published; they are those of Tülu 3's (arXiv 2411.15124, Table 36), on the pairs of DPO.
"""

from easylm_jax.config import Recipe
from recipes.tulu3.base import pairs, reward_model

SFT = "hf:allenai/OLMo-2-1124-7B-SFT"

recipe = Recipe(
    "olmo2-7b-rm",
    mesh="fsdp=-1",
    pod="v5p-64",  # 32 chips, 8 pairs on each, in micro-batches of 4
    stages=(
        reward_model(
            init=SFT,
            data=pairs("olmo-2-1124-7b-preference-mix", SFT, overlong="drop", template="olmo"),
            examples=366_700,  # pairs, about
            accumulate=2,
            remat="attention",
        ),
    ),
)
