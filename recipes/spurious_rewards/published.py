"""Published numbers of Spurious Rewards (arXiv 2506.10947 v1), which reports print beside ours.

In percent and percentage points. Figure 1 prints the gain of each bar but does not always name its reward; gains that
cannot be assigned are left out (for Llama 3.1 8B Instruct −2.1, −6.4, −8.3 and −11.5, for OLMo 2 7B +0.4, −1.3, −2.2,
−6.3 and −6.4 belong to the other rewards in some order; of Qwen2.5-7B's format and random, one is +16.4 and one +16.7).
"""

from __future__ import annotations

from easylm_jax.config import Published
from recipes.spurious_rewards.analysis import SUBSETS, Subset

MATH, AIME24 = "MATH-500", "AIME 2024"
BASE = "untrained"

# MATH-500 before training, and gains after 300 steps (Figure 1).
MATH_BASE = {
    "qwen2.5-math-7b": 49.4, "qwen2.5-math-1.5b": 36.2, "qwen2.5-7b": 41.6, "qwen2.5-1.5b": 3.0,
    "llama3.1-8b-instruct": 36.8, "llama3.2-3b-instruct": 36.8, "olmo2-7b": 9.0, "olmo2-7b-sft": 21.4,
}  # fmt: skip
FIGURE_1 = {
    "qwen2.5-math-7b": {"ground truth": 29.1, "majority vote": 27.1, "one-shot": 26.0, "format": 13.8,
                        "incorrect": 24.1, "random 0.5": 21.4},
    "qwen2.5-7b": {"ground truth": 34.4, "majority vote": 31.9, "one-shot": 13.2, "incorrect": 27.8},
    "llama3.1-8b-instruct": {"ground truth": 7.4, "majority vote": 7.2},
    "olmo2-7b": {"ground truth": 15.5},
}  # fmt: skip
# Gains on AIME 2024 of Qwen2.5-Math-7B (appendix, Figure 14).
FIGURE_14 = {"ground truth": 15.3, "format": 10.3, "incorrect": 10.2, "random 0.5": 10.2}

# Code reasoning before training (Section 4, Table 1): share of responses with "python", accuracy with and without it.
# For Qwen2.5-Math-7B, the counts of the strategy switch give 28.0 without code.
CODE_REASONING = {
    "qwen2.5-math-7b": (65.0, 60.9, 35.0), "qwen2.5-math-1.5b": (53.6, 52.6, 17.2), "qwen2.5-7b": (92.2, 39.9, 61.5),
    "olmo2-7b-sft": (98.0, 21.0, 40.0),
}  # fmt: skip


def _switch(*numbers: float) -> dict[str, Subset]:
    """Count, accuracy before and after of the four subsets."""
    parts = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return {name: Subset(int(count), *rest) for name, (count, *rest) in zip(SUBSETS, parts, strict=True)}


# Qwen2.5-Math-7B, MATH-500, step 0 to 150 (Section 4.2, Figure 7).
STRATEGY_SWITCH = {
    "ground truth": _switch(165, 63.6, 72.1, 160, 58.1, 78.1, 72, 27.8, 77.8, 103, 28.2, 88.3),
    "majority vote": _switch(243, 60.9, 70.8, 82, 61.0, 78.0, 119, 23.5, 80.7, 56, 37.5, 89.3),
    "format": _switch(314, 60.8, 67.5, 11, 63.6, 45.5, 152, 23.7, 78.3, 23, 56.5, 91.3),
    "incorrect": _switch(301, 60.5, 69.8, 24, 66.7, 83.3, 129, 22.5, 77.5, 46, 43.5, 82.6),
    "random 0.5": _switch(268, 61.2, 57.8, 57, 59.6, 71.9, 142, 23.9, 69.0, 33, 45.5, 93.9),
}
AT_150 = {"ground truth": 78.2, "majority vote": 76.4, "format": 71.4, "incorrect": 73.6, "random 0.5": 65.0}
# Average gain and its parts by subset, in percent (Section 4.2, Table 2).
CONTRIBUTIONS = {
    "qwen2.5-math-7b": (23.5, 11.6, 8.6, 58.3, 21.4),
    "qwen2.5-math-1.5b": (28.5, 2.8, 2.0, 78.7, 16.5),
    "qwen2.5-7b": (30.6, 0.2, 93.9, 0.0, 5.9),
}

# Responses that are forced to begin with a sentence that announces Python (Section 4.3, Table 3): before, after.
FORCED_CODE = {
    "qwen2.5-math-1.5b": (36.2, 60.4), "qwen2.5-math-7b": (49.4, 64.4), "qwen2.5-1.5b": (3.0, 13.0),
    "qwen2.5-7b": (41.6, 22.2), "llama3.2-3b-instruct": (36.8, 8.2), "llama3.1-8b-instruct": (36.8, 15.2),
    "olmo2-7b": (9.0, 7.8), "olmo2-7b-sft": (21.4, 18.6),
}  # fmt: skip
# Compound rewards without Python on OLMo2-7B-SFT (Figure 16): gains.
FIGURE_16 = {"format without python": 8.9, "incorrect without python": 5.5}
# Prompts before training, Qwen2.5-Math-7B (appendix, Figure 18): accuracy, share of parsable answers.
PROMPTS = {
    "default": (49.4, 78.9), "Math Problem": (55.8, 72.1), "SimpleRL-Zoo": (63.2, 85.4), "Sober": (61.6, 93.1),
    "lorem ipsum": (68.8, 84.1),
}  # fmt: skip


SOURCE = "arXiv 2506.10947"


def gains(key: str, added: dict[str, float], where: str) -> tuple[Published, ...]:
    """Accuracy of a model on MATH-500 before training and with each reward, and its share of responses with code."""
    base = MATH_BASE[key]
    after = tuple(
        Published(reward, MATH, round(base + gain, 1), f"{SOURCE}, {where}") for reward, gain in added.items()
    )
    return (*before(key), *after)


def before(key: str) -> tuple[Published, ...]:
    """A model before training: accuracy on MATH-500, and share of responses with code where known."""
    found = [Published(BASE, MATH, MATH_BASE[key], f"{SOURCE}, Figure 1")] if key in MATH_BASE else []
    if key in CODE_REASONING:
        found.append(Published(BASE, f"{MATH} python", CODE_REASONING[key][0], f"{SOURCE}, Table 1"))
    return tuple(found)


def aime(key: str) -> tuple[Published, ...]:
    """Gains on AIME 2024; accuracies before training are not published."""
    known = FIGURE_14 if key == "qwen2.5-math-7b" else {}
    return tuple(Published(reward, f"{AIME24} gain", gain, f"{SOURCE}, Figure 14") for reward, gain in known.items())


def at_150() -> tuple[Published, ...]:
    """Qwen2.5-Math-7B after 150 steps."""
    return tuple(Published(reward, MATH, value, f"{SOURCE}, Figure 7") for reward, value in AT_150.items())


def clipping() -> tuple[Published, ...]:
    """Qwen2.5-Math-7B before training, and the approximate final accuracy of random rewards with clipping."""
    base = before("qwen2.5-math-7b")
    return (*base, Published("random 0.5, clip", MATH, 70.0, f"{SOURCE}, Figure 11, about"))


def prompts() -> tuple[Published, ...]:
    """Qwen2.5-Math-7B before training with five prompts: accuracy, and share of parsable answers."""
    return tuple(
        Published(BASE, f"{MATH}, {prompt}{what}", value, f"{SOURCE}, appendix on prompts")
        for prompt, values in PROMPTS.items()
        for what, value in zip(("", " parsable"), values, strict=True)
    )
