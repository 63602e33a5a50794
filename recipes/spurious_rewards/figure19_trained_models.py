"""Spurious Rewards, Figure 19: models after earlier reinforcement learning (arXiv 2506.10947, Figure 19)."""

from recipes.spurious_rewards import arms, suites
from recipes.spurious_rewards.data import TRAINED

recipe = suites.grid("figure19", TRAINED, arms.MAIN)
