"""Published numbers of M-RewardBench (arXiv 2410.15522), to compare with (spec m_rewardbench §6).

Agreement is Cohen's κ with English, mean and deviation over languages; drops are points, multilingual minus English.
Both come from the paper's public analysis code. Averages were read off a figure, to about 0.3 points.
"""

from __future__ import annotations

KAPPA = {
    "GPT-4 Turbo": (0.610, 0.029), "Llama 3.1 70B": (0.607, 0.028), "GPT-4o": (0.583, 0.024),
    "Llama 3 70B": (0.574, 0.048), "Gemma 2 9B": (0.524, 0.029), "Gemma 1.1 7B": (0.512, 0.028),
    "Mistral 7B v0.2": (0.420, 0.042), "Mistral 7B v0.3": (0.417, 0.051), "Aya Expanse 32B": (0.400, 0.028),
    "Aya Expanse 8B": (0.385, 0.021), "Command R+": (0.381, 0.020), "Command R": (0.370, 0.030),
    "Llama 3.1 8B": (0.350, 0.056), "Llama 3 8B": (0.343, 0.029), "BTRM Qwen2 7B": (0.489, 0.070),
    "URM Llama 3.1 8B": (0.397, 0.078), "Eurus RM 7B": (0.359, 0.096), "Tulu 2.5 13B RM": (0.304, 0.115),
    "Qwen1.5 4B": (0.388, 0.055), "Zephyr 7B beta": (0.350, 0.176), "Tulu 2 DPO 13B": (0.342, 0.130),
    "Mistral 7B DPO": (0.190, 0.085), "StableLM Zephyr 3B": (0.171, 0.063),
}  # fmt: skip
# Chat, Chat Hard, Safety, Reasoning.
DROPS = {
    "GPT-4 Turbo": (-1.5, -3.5, -3.2, 0.8), "GPT-4o": (-2.8, -6.0, -4.1, -2.8), "Gemma 2 9B": (-0.6, -6.5, -4.8, -0.6),
    "Llama 3.1 70B": (-1.8, -11.6, -8.5, -2.9), "Llama 3 70B": (-2.4, -9.0, 2.9, -2.1),
    "Tulu 2 13B DPO": (-20.4, -2.3, -11.5, 1.0),
}  # fmt: skip
# English, multilingual.
AVERAGES = {
    "GPT-4 Turbo": (85.3, 83.5), "Llama 3.1 70B": (81.7, 75.5), "best classifier": (86.2, 76.3),
    "Aya Expanse 32B": (74.4, 71.8), "Qwen1.5 4B": (57.0, 53.4),
}  # fmt: skip
CORRELATION = {"pearson": 0.92, "spearman": 0.89}  # of English and multilingual averages over models
