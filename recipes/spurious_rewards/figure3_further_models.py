"""Spurious Rewards, Figure 3: eight further models with five rewards, 300 steps each (arXiv 2506.10947, Figure 3)."""

from recipes.spurious_rewards import arms, published, suites
from recipes.spurious_rewards.data import TEN

KEYS = tuple(key for key in TEN if not key.startswith("qwen2.5-math"))

recipe = suites.grid("figure3", KEYS, arms.MAIN, figures={key: published.before(key) for key in KEYS})
