"""Spurious Rewards, Figure 17: a reward for responses without repetition, ten models (arXiv 2506.10947, Figure 17)."""

from recipes.spurious_rewards import published, suites
from recipes.spurious_rewards.data import TEN

recipe = suites.grid(
    "figure17", TEN, ("no repetition",), steps=150, figures={key: published.before(key) for key in TEN}
)
