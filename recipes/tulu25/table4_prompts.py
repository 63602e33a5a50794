"""Tülu 2.5, Table 4: PPO on UltraFeedback's prompts or on those mixed with code and maths (arXiv 2406.09279).

Each of the four reward models of Table 3 with each set of prompts.
"""

from recipes.tulu25 import grid, stages, suites

rewards = grid.reward_models()
cells = grid.trained_on(rewards, ("uf", "mixed"))

recipe = stages.recipe(
    *rewards,
    *(ppo for _, _, ppo in cells),
    suites.table("table4", "Tülu 2.5, Table 4: mixed prompts", grid.entries(cells), ()),
)
