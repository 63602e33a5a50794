"""Spurious Rewards, Figure 10: random rewards of other shares on Qwen2.5-Math-7B (arXiv 2506.10947, Figure 10).

A share of 0 never teaches anything (all advantages are 0), and one of 0.001 nearly never: 98.4 % of groups are equal.
"""

from recipes.spurious_rewards import published, suites

KEY = "qwen2.5-math-7b"
COINS = tuple(f"random {share}" for share in (0.7, 0.5, 0.3, 0.001, 0))

recipe = suites.grid("figure10", (KEY,), COINS, figures={KEY: published.before(KEY)})
