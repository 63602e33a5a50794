"""Spurious Rewards, Figure 10: random rewards of other shares on Qwen2.5-Math-7B (arXiv 2506.10947, Figure 10).

With a share of 0 all advantages are 0, so there is no gradient; with 0.001, 98.4 % of groups have zero variance.
"""

from recipes.spurious_rewards import published, suites

KEY = "qwen2.5-math-7b"
COINS = tuple(f"random {share}" for share in (0.7, 0.5, 0.3, 0.001, 0))

recipe = suites.grid("figure10", (KEY,), COINS, figures={KEY: published.before(KEY)})
