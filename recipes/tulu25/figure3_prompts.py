"""Tülu 2.5, Figure 3: GSM8K after PPO on general, mined maths or GSM8K's own prompts (arXiv 2406.09279, Section 3.4).

Each of the four reward models of Table 3 on each set of prompts; one epoch of each set, so that 60,908 prompts make 116
rollouts, 20,000 make 39 and 7,473 make 14.
"""

from recipes.tulu25 import grid, published, stages, suites

rewards = grid.reward_models()
cells = grid.trained_on(rewards, ("uf", "math", "gsm8k"))

recipe = stages.recipe(
    *rewards,
    *(ppo for _, _, ppo in cells),
    suites.table("figure3", "Tülu 2.5, Figure 3: GSM8K by prompts", grid.entries(cells), published.FIGURE_3),
)
