"""Spurious Rewards, Figures 9 and 16: three rewards, with and without a condition on "python" (arXiv 2506.10947).

60 steps. In the compound rewards a response that contains "python" gets 0.
"""

from recipes.spurious_rewards import published, suites

PLAIN = ("ground truth", "format", "incorrect")
KEYS = ("qwen2.5-math-7b", "qwen2.5-7b", "olmo2-7b-sft")

recipe = suites.grid(
    "figure9",
    KEYS,
    (*PLAIN, *(f"{name} without python" for name in PLAIN)),
    steps=60,
    figures={
        **{key: published.before(key) for key in KEYS},
        "olmo2-7b-sft": published.gains("olmo2-7b-sft", published.FIGURE_16, "Figure 16"),
    },
)
