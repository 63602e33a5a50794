"""Spurious Rewards (arXiv 2506.10947, Figure 11) on one CPU: a random reward, with and without clipping.

    easylm run recipes/spurious_rewards/ladder_clipping.py
    python -m recipes.spurious_rewards.sharpness runs/spurious-ladder recipes/spurious_rewards/ladder_clipping.py

More seeds of two arms of `ladder.py`, and a control with one update per rollout, whose ratio is 1 so that nothing is
clipped (at an eighth of the updates). Runs with the same seed have the same problems and random rewards.
"""

import dataclasses

from easylm_jax.config import GRPO, Recipe
from recipes.spurious_rewards import ladder

SEEDS = range(8)
WAYS = ("random", "random, no clip")


def one_update(seed: int) -> GRPO:
    """The arm with clipping and a single update per rollout."""
    return dataclasses.replace(ladder.arm("random", seed), name=f"random-one-update-{seed}", mini_batch=128)


runs = {way: [ladder.arm(way, seed) for seed in SEEDS] for way in WAYS}
runs["random, one update"] = [one_update(seed) for seed in SEEDS]

recipe = Recipe(
    ladder.recipe.name,
    stages=(
        *ladder.BASE,
        *(stage for stages in runs.values() for stage in stages),
        ladder.table(
            "clipping",
            "A random reward, with the clip and without",
            {way: tuple(stage.name for stage in stages) for way, stages in runs.items()},
        ),
    ),
)
