"""Evaluates finished models on held-out prompts and writes one table.

    models x tasks → responses → scores, one for each prompt → table.json, samples.jsonl, report.html

All models are given the same prompts with the same seeds, so differences are computed prompt by prompt (paired).
"""

from easylm_jax.evaluate.moderation import parse_moderation
from easylm_jax.evaluate.preferences import cohens_kappa, preference_sections
from easylm_jax.evaluate.stage import evaluate
from easylm_jax.evaluate.statistics import Estimate, difference, mean

__all__ = [
    "Estimate",
    "cohens_kappa",
    "difference",
    "evaluate",
    "mean",
    "parse_moderation",
    "preference_sections",
]
