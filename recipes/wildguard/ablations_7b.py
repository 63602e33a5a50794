"""WildGuard's ablations (arXiv 2406.18495): a single task, without adversarial rows, without rows in the wild"""

from easylm_jax.config import Recipe
from recipes.wildguard import data, stages

# The released mixture has no column that says which rows are in the wild; a file with a column `source` does, which the
# argument `path` of that arm names.
ARMS: dict[str, dict[str, str | bool | None]] = {
    "all": {},
    "no-adversarial": {"adversarial": False},
    "no-wild": {"in_the_wild": False},
    **{f"only-{task.replace('_', '-')}": {"task": task} for task in data.TASKS},
}
recipe = Recipe(
    "wildguard-ablations",
    mesh="fsdp=-1",
    pod="v5p-32",
    stages=(
        *(stages.mixture(f"data-{name}", **how) for name, how in ARMS.items()),
        *(stages.moderator(name, f"data-{name}") for name in ARMS),
        stages.table(tuple(ARMS), "WildGuard: ablations of tasks and sources"),
    ),
)
