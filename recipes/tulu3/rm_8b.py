"""Tülu 3 8B: the reward model that initialises the value models of RLVR (arXiv 2411.15124, Table 36 and Section 6).

The released run reached an accuracy of about 0.81 and a loss of about 0.37 (allenai/open-instruct, docs/algorithms).
"""

from easylm_jax.config import DataSpec, Recipe, Source
from recipes.tulu3.base import SIDE, pairs, reward_model

SFT = "hf:allenai/Llama-3.1-Tulu-3-8B-SFT"

recipe = Recipe(
    "tulu3-8b-rm",
    mesh="fsdp=-1",
    pod="v5p-64",  # 32 chips, 8 pairs on each, in micro-batches of 4
    stages=(
        reward_model(
            init=SFT,
            data=pairs("llama-3.1-tulu-3-8b-preference-mixture", SFT, overlong="drop"),
            held_out=DataSpec(
                (Source("hf:allenai/ultrafeedback_binarized_cleaned:test_prefs"),), SFT, 2 * SIDE, kind="preference",
                template="tulu", packing="none", overlong="drop", train_on="assistant", on_bad="skip",
            ),
            examples=271_409,  # pairs, those of DPO
            accumulate=2,
            remat="attention",
        ),
    ),
)  # fmt: skip
