"""WildGuard 7B (arXiv 2406.18495): a moderator from Mistral 7B v0.3, three seeds, on the public benchmarks"""

from easylm_jax.config import Recipe
from recipes.wildguard import stages

SEEDS = (0, 1, 2)
recipe = Recipe(
    "wildguard-7b",
    mesh="fsdp=-1",
    pod="v5p-32",
    stages=(
        stages.mixture(),
        *(stages.moderator(f"moderator-{seed}", seed=seed) for seed in SEEDS),
        stages.table(tuple(f"moderator-{seed}" for seed in SEEDS), "WildGuard: F1 by task"),
    ),
)
