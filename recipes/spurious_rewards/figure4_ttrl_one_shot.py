"""Spurious Rewards, Figure 4: agreement with the group (TTRL), and one problem alone (arXiv 2506.10947, Figure 4).

TTRL trains on the test's problems without their labels; a response earns 1 where its answer is that of most of the 16.
"""

from recipes.spurious_rewards import published, suites
from recipes.spurious_rewards.data import TEN

recipe = suites.grid(
    "figure4", TEN, ("TTRL", "one-shot"), steps=100, figures={key: published.before(key) for key in TEN}
)
