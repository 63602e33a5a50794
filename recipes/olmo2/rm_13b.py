"""OLMo 2 13B: the reward model that initialises the value models of RLVR (arXiv 2501.00656, Section 5).

Its settings are not published; they are those of Tülu 3's (arXiv 2411.15124, Table 36), on the pairs of DPO.
"""

from easylm_jax.config import Recipe
from recipes.tulu3.base import pairs, reward_model

SFT = "hf:allenai/OLMo-2-1124-13B-SFT"

recipe = Recipe(
    "olmo2-13b-rm",
    mesh="fsdp=-1",
    pod="v5p-128",  # 64 chips, 4 pairs on each, in micro-batches of 2
    stages=(
        reward_model(
            init=SFT,
            data=pairs("olmo-2-1124-13b-preference-mix", SFT, overlong="drop", template="olmo"),
            examples=377_700,  # pairs, about
            accumulate=2,
            remat="attention",
        ),
    ),
)
