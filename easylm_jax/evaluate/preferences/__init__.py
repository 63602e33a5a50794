"""Preference benches (RewardBench 1 and 2, M-RewardBench): items, judges, sections, agreement and analyses."""

from easylm_jax.evaluate.preferences.agreement import cohens_kappa
from easylm_jax.evaluate.preferences.sections import preference_sections

__all__ = ["cohens_kappa", "preference_sections"]
