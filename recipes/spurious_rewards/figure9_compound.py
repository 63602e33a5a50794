"""Spurious Rewards, Figures 9 and 16: three rewards, and the same where Python forfeits them (arXiv 2506.10947).

60 steps; a response earns what it earned before and nothing where "python" is in it.
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
