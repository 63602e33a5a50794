"""Tülu 2.5, Figure 3: GSM8K after PPO on general, mined maths or GSM8K's own prompts (arXiv 2406.09279, Section 3.4).

Each of the four reward models of Table 3 with each set of prompts, for one epoch: 116 rollouts of 60,908 prompts, 39 of
20,000 and 14 of 7,473.
"""

from recipes.tulu25 import grid, published, stages, suites

rewards = grid.reward_models()
cells = grid.trained_on(rewards, ("uf", "math", "gsm8k"))

recipe = stages.recipe(
    *rewards,
    *(ppo for _, _, ppo in cells),
    suites.table("figure3", "Tülu 2.5, Figure 3: GSM8K by prompts", grid.entries(cells), published.FIGURE_3),
)
