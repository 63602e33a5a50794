"""Checkpoints: one atomic folder per step. Saving, restoring, comparing, converting, and loading models by name."""

from easylm_jax.checkpoint.checkpointer import Checkpointer, restore_params
from easylm_jax.checkpoint.resume import config_difference, guard_fresh_start
from easylm_jax.checkpoint.store import Retention

__all__ = ["Checkpointer", "Retention", "config_difference", "guard_fresh_start", "restore_params"]
