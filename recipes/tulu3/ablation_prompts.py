"""Tülu 3, Section 5: preference data from fewer and more prompts, reused and unused (arXiv 2411.15124)

Unique prompts help, and unused ones slightly more than reused ones (Section 5.2; the paper gives no table of numbers).
One set of responses and ratings is binarised three times: an eighth of the reused prompts, all of them, and as many
unused ones.
"""

import dataclasses

from easylm_jax.config import Entry, Recipe
from recipes.tulu3 import preference_data as parts
from recipes.tulu3.base import dpo, table

COUNT = 64_000  # prompts of each part; the paper compares 64k unique prompts with 383k
ARMS = {"fewer": "reused", "reused": "reused", "unused": "unused"}

reused = dataclasses.replace(parts.OFF_POLICY[0], name="reused", count=COUNT)
unused = dataclasses.replace(parts.UNUSED, name="unused", count=COUNT)
recipe = Recipe(
    "tulu3-ablation-prompts",
    pod="v5p-64",  # 32 chips, as dpo_8b
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",
    stages=(
        parts.prompts(reused, unused), parts.responses("responses"), parts.ratings("rate", "responses"),
        *(parts.pairs(f"pairs-{arm}", "rate", parts=(part,), count=COUNT // 8 if arm == "fewer" else None)
          for arm, part in ARMS.items()),
        *(dataclasses.replace(dpo(init=parts.POLICY, data=parts.data(f"pairs-{arm}"), lr=5e-7, remat="attention"),
                              name=f"dpo-{arm}") for arm in ARMS),
        table(
            "Tülu 3 8B: more and fewer prompts",
            (Entry("SFT", (parts.POLICY,)), *(Entry(arm, (f"dpo-{arm}",), over="SFT") for arm in ARMS)), (),
            parts.POLICY,
        ),
    ),
)  # fmt: skip
