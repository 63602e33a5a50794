"""Evaluates models: benchmarks, log-likelihoods, and the stage that writes a table.

    benchmark → documents → requests → responses        benchmark.py, asking.py, harness.py
    responses → scores with standard errors             results.py
    models x tasks → responses → scores → table.json    stage.py

All models are given the same prompts with the same seeds, so differences are computed prompt by prompt (paired).
"""

from easylm_jax.decode.likelihood import loglikelihood
from easylm_jax.evaluate.moderation import parse_moderation
from easylm_jax.evaluate.preferences import cohens_kappa, preference_sections
from easylm_jax.evaluate.stage import evaluate
from easylm_jax.evaluate.statistics import Estimate, difference, mean

__all__ = [
    "Estimate",
    "cohens_kappa",
    "difference",
    "evaluate",
    "loglikelihood",
    "mean",
    "parse_moderation",
    "preference_sections",
]
