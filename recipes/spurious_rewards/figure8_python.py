"""Spurious Rewards, Figure 8: a reward for the word "python" alone, ten models (arXiv 2506.10947, Figure 8)."""

from recipes.spurious_rewards import published, suites
from recipes.spurious_rewards.data import TEN

recipe = suites.grid("figure8", TEN, ("python",), steps=100, figures={key: published.before(key) for key in TEN})
