"""Spurious Rewards, Figure 4: TTRL (agreement with the group) and one-shot training (arXiv 2506.10947, Figure 4).

TTRL trains on the problems of the test set without labels: the reward is 1 for the most frequent answer of the 16.
"""

from recipes.spurious_rewards import published, suites
from recipes.spurious_rewards.data import TEN

recipe = suites.grid(
    "figure4", TEN, ("TTRL", "one-shot"), steps=100, figures={key: published.before(key) for key in TEN}
)
