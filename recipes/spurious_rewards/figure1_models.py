"""Spurious Rewards, Figure 1: four models with six rewards, 300 steps each (arXiv 2506.10947, Figure 1).

The columns of AIME 2024 and 2025 are Figures 14 and 15.
"""

from recipes.spurious_rewards import arms, published, suites
from recipes.spurious_rewards.data import MAIN

recipe = suites.grid(
    "figure1",
    MAIN,
    (*arms.MAIN, "one-shot"),
    figures={key: (*published.gains(key, published.FIGURE_1[key], "Figure 1"), *published.aime(key)) for key in MAIN},
)
