"""Pure mathematics of training: every objective maps parameters and a batch to sums (`easylm_jax.steps.Loss`)."""

from easylm_jax.objectives.language_modelling import language_modelling

__all__ = ["language_modelling"]
