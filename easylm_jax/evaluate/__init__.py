"""Judges finished models on held-out prompts, and says in one table what that gave.

    models x tasks → answers → verdicts, one for each prompt → table.json, samples.jsonl, report.html

Every model answers the same prompts with the same seeds, so that differences are taken prompt by prompt.
"""

from easylm_jax.evaluate.stage import evaluate
from easylm_jax.evaluate.statistics import Estimate, difference, mean

__all__ = ["Estimate", "difference", "evaluate", "mean"]
