"""Spurious Rewards (arXiv 2506.10947, Figure 11) at a size for one CPU: a random reward, with the clip and without.

    easylm run recipes/spurious_rewards/ladder_clipping.py
    python -m recipes.spurious_rewards.sharpness runs/spurious-ladder recipes/spurious_rewards/ladder_clipping.py

More seeds of two arms of `ladder.py`, and a control with one update a rollout, where the ratio is 1 and nothing is ever
clipped (at an eighth of the updates). A seed has the same problems and the same coins in all three.
"""

import dataclasses

from easylm_jax.config import Recipe
from recipes.spurious_rewards import ladder

SEEDS = range(8)
WAYS = ("random", "random, no clip")


def one_update(seed: int):
    """The arm with the clip whose rollouts have a single update."""
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
