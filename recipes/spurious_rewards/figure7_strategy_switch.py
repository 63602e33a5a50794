"""Spurious Rewards, Figures 6 and 7: code or language before and after 150 steps (arXiv 2506.10947, Section 4.2).

    python -m recipes.spurious_rewards.analysis runs/spurious-rewards/figure7-qwen2.5-math-7b

prints the accuracy before and after training on problems solved with code or language before and after, and the share
of the total gain from each of the four subsets. The learning rate is constant, so these runs equal the first half of
those of Figure 1.
"""

from recipes.spurious_rewards import arms, published, stages, suites

FEWER = ("ground truth", "majority vote", "incorrect")  # for Qwen2.5-7B
FIGURES = {
    key: (*published.before(key), *(published.at_150() if key == "qwen2.5-math-7b" else ()))
    for key in ("qwen2.5-math-7b", "qwen2.5-math-1.5b", "qwen2.5-7b", "olmo2-7b-sft")
}

math = suites.grid("figure7", ("qwen2.5-math-7b", "qwen2.5-math-1.5b"), arms.MAIN, steps=150, figures=FIGURES)
bad_code = suites.grid("figure7", ("qwen2.5-7b", "olmo2-7b-sft"), FEWER, steps=150, figures=FIGURES)
recipe = stages.recipe(*math.stages, *bad_code.stages)
