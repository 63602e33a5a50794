"""Checkpoints: one atomic folder for each step; saved, restored, compared, converted, and loaded by a model's name."""

from easylm_jax.checkpoint.checkpointer import Checkpointer, config_difference, guard_fresh_start, restore_params
from easylm_jax.checkpoint.store import Retention

__all__ = ["Checkpointer", "Retention", "config_difference", "guard_fresh_start", "restore_params"]
