"""Tülu 3, Section 5: off-policy preference data, on-policy data, and both (arXiv 2411.15124)

On-policy data help (Section 5.2; the paper gives no table of numbers). The same prompts are answered by four models of
the pool, and by one's own beside one of the pool; each arm trains on equally many pairs.
"""

import dataclasses

from easylm_jax.config import DataSpec, Entry, Recipe
from recipes.tulu3 import preference_data as parts
from recipes.tulu3.base import dpo, table

COUNT = 19_444  # pairs of an arm: the on-policy part of Table 15
HALF = COUNT // 2


def halves() -> DataSpec:
    """Half of the pairs of each sort."""
    both = parts.data("pairs-off", "pairs-on")
    return dataclasses.replace(both, sources=tuple(dataclasses.replace(one, limit=HALF) for one in both.sources))


DATA = {"off": parts.data("pairs-off"), "on": parts.data("pairs-on"), "both": halves()}
recipe = Recipe(
    "tulu3-ablation-policy",
    pod="v5p-64",  # 32 chips, as dpo_8b
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",
    stages=(
        parts.prompts(dataclasses.replace(parts.ON_POLICY[0], count=2 * COUNT)),  # some are all tied and give no pair
        *(parts.responses(f"responses-{arm}", own=arm == "on") for arm in ("off", "on")),
        *(parts.ratings(f"rate-{arm}", f"responses-{arm}") for arm in ("off", "on")),
        *(parts.pairs(f"pairs-{arm}", f"rate-{arm}", policy=arm, count=COUNT) for arm in ("off", "on")),
        *(dataclasses.replace(dpo(init=parts.POLICY, data=data, lr=5e-7, remat="attention"), name=f"dpo-{arm}")
          for arm, data in DATA.items()),
        table(
            "Tülu 3 8B: off-policy and on-policy pairs",
            (Entry("SFT", (parts.POLICY,)), *(Entry(arm, (f"dpo-{arm}",), over="SFT") for arm in DATA)), (),
            parts.POLICY,
        ),
    ),
)  # fmt: skip
