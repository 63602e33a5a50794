"""Published numbers of Tülu 2.5 (arXiv 2406.09279), which reports print beside ours.

The columns are the paper's six categories and their mean. Tables 1 to 3 are those of the final version; numbers of the
released models are from their model cards. Unknown numbers are left out: all cells of Figure 3 and Table 4 but one, and
those of reward models trained on the mix in Table 3.
"""

from __future__ import annotations

from easylm_jax.config import Published

CATEGORIES = ("Factuality", "Reasoning", "Coding", "Truthfulness", "Safety", "Instruction")
COLUMNS = (*CATEGORIES, "Average")

SFT = "Tülu 2 SFT"
_SFT_ROW = (55.4, 47.8, 45.1, 56.6, 91.8, 44.2, 56.8)

# DPO on each set. The base model's row has no average.
_TABLE_1 = {
    "Llama 2 base": (52.0, 37.0, 30.7, 32.7, 32.7),
    SFT: _SFT_ROW,
    "SHP-2": (55.4, 47.7, 40.3, 62.2, 90.4, 45.6, 56.9),
    "StackExchange": (55.7, 46.8, 39.6, 67.4, 92.6, 44.6, 57.8),
    "PRM800k": (55.3, 49.7, 46.6, 54.7, 91.9, 43.4, 56.9),
    "Chatbot Arena 2023": (55.4, 50.2, 45.9, 58.5, 67.3, 50.8, 54.7),
    "Chatbot Arena 2024": (55.7, 50.4, 37.7, 56.7, 58.1, 50.7, 51.5),
    "AlpacaFarm human": (55.3, 47.6, 43.3, 56.1, 90.7, 44.5, 56.2),
    "HH-RLHF": (54.7, 46.0, 43.6, 65.6, 93.1, 45.4, 58.1),
    "HelpSteer": (55.2, 48.2, 46.5, 60.3, 92.5, 45.2, 58.0),
    "AlpacaFarm GPT-4": (55.3, 49.1, 43.4, 57.7, 89.5, 46.3, 56.9),
    "Capybara 7k": (55.2, 46.4, 46.4, 57.5, 91.5, 46.1, 57.2),
    "Orca pairs": (55.5, 46.8, 46.0, 57.9, 90.5, 46.2, 57.2),
    "Nectar": (55.3, 47.8, 43.2, 68.2, 93.1, 47.8, 59.2),
    "UltraFeedback overall": (55.6, 48.8, 46.5, 67.6, 92.1, 51.1, 60.3),
    "UltraFeedback fine-grained": (55.3, 50.9, 45.9, 69.3, 91.9, 52.8, 61.0),
}

# DPO and PPO on the same 60,908 pairs of each set (Chatbot Arena 2023: 20,465).
_TABLE_2 = {
    SFT: _SFT_ROW,
    "StackExchange, DPO": (55.3, 47.8, 42.4, 56.2, 92.0, 46.7, 56.7),
    "StackExchange, PPO": (55.1, 47.8, 46.4, 54.2, 92.6, 47.4, 57.3),
    "Chatbot Arena 2023, DPO": (55.4, 50.2, 45.9, 58.5, 67.3, 50.8, 54.7),
    "Chatbot Arena 2023, PPO": (55.2, 49.2, 46.4, 55.8, 79.4, 49.7, 55.9),
    "HH-RLHF, DPO": (55.2, 47.6, 44.2, 60.0, 93.4, 46.6, 57.8),
    "HH-RLHF, PPO": (54.9, 48.6, 45.9, 58.0, 92.8, 47.0, 57.9),
    "Nectar, DPO": (55.6, 45.8, 39.0, 68.1, 93.3, 48.4, 58.4),
    "Nectar, PPO": (55.2, 51.2, 45.6, 60.1, 92.6, 47.4, 58.7),
    "UltraFeedback fine-grained, DPO": (55.3, 50.9, 45.9, 69.3, 91.9, 52.8, 61.0),
    "UltraFeedback fine-grained, PPO": (56.0, 52.0, 47.7, 71.5, 91.8, 54.4, 62.2),
}

# By the reward model of PPO: score on RewardBench, mean of best-of-N over the suite, and the policy's results.
_TABLE_3 = {
    SFT: {"best of N": 51.1, "Average": 56.8},
    "13B UF": {"RewardBench": 61.0, "best of N": 56.9, "GSM8K": 53.0, "Average": 62.2},
    "13B Mix": {"RewardBench": 79.8, "best of N": 58.3},
    "70B UF": {"RewardBench": 73.6, "best of N": 61.1, "GSM8K": 58.0, "Average": 62.8},
    "70B Mix": {"RewardBench": 73.9, "best of N": 60.6},
}

_CARDS = {
    "PPO, 70B UF": {"GSM8K": 58.0, "AlpacaEval 2 LC": 26.7, "Average": 62.8},
    "Tülu 2 DPO": {"GSM8K": 50.5, "AlpacaEval 2 LC": 16.0, "Average": 61.0},
}


def _categories(rows: dict[str, tuple[float, ...]], source: str) -> tuple[Published, ...]:
    """Rows of the six categories and their mean; a shorter row ends early."""
    return tuple(
        Published(method, column, value, source)
        for method, values in rows.items()
        for column, value in zip(COLUMNS, values, strict=False)
    )


def _named(rows: dict[str, dict[str, float]], source: str) -> tuple[Published, ...]:
    return tuple(Published(method, name, value, source) for method, row in rows.items() for name, value in row.items())


TABLE_1 = _categories(_TABLE_1, "arXiv 2406.09279, Table 1")
TABLE_2 = _categories(_TABLE_2, "arXiv 2406.09279, Table 2")
TABLE_3 = _named(_TABLE_3, "arXiv 2406.09279, Table 3")
FIGURE_3 = (
    Published(SFT, "GSM8K", 46.0, "arXiv 2406.09279, Figure 3, about"),
    Published("70B UF, GSM8K train", "GSM8K", 62.0, "arXiv 2406.09279, Figure 3, about"),
)
CARDS = _named(_CARDS, "card of allenai/tulu-v2.5-ppo-13b-uf-mean-70b-uf-rm")
