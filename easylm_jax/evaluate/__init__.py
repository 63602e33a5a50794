"""Evaluates finished models on held-out prompts and writes one table.

    models x tasks → responses → scores, one for each prompt → table.json, samples.jsonl, report.html

All models are given the same prompts with the same seeds, so differences are computed prompt by prompt (paired).
"""

from easylm_jax.evaluate.stage import evaluate
from easylm_jax.evaluate.statistics import Estimate, difference, mean

__all__ = ["Estimate", "difference", "evaluate", "mean"]
