"""Spurious Rewards, Figure 2: Qwen2.5-Math 7B and 1.5B with five rewards, step by step (arXiv 2506.10947, Figure 2).

The curves are the held-out scores that each run leaves in `metrics.jsonl`, MATH-500 every ten steps.
"""

from recipes.spurious_rewards import arms, published, suites

KEYS = ("qwen2.5-math-7b", "qwen2.5-math-1.5b")

recipe = suites.grid("figure2", KEYS, arms.MAIN, figures={key: published.before(key) for key in KEYS})
