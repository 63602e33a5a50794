"""Converts parameters between Hugging Face folders and checkpoints of this project."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import models
from easylm_jax.checkpoint import hub
from easylm_jax.checkpoint.checkpointer import Checkpointer, restore_params
from easylm_jax.checkpoint.load import model_of
from easylm_jax.checkpoint.resume import guard_fresh_start
from models.errors import UserError


def from_hf(source: str, target: str, *, dtype: str | None = None, overwrite: bool = False) -> None:
    """Writes the model of a Hugging Face folder (or hub name) as checkpoint 0 of the stage folder `target`."""
    if overwrite or Path(target, "checkpoints").exists():
        guard_fresh_start(Path(target) / "checkpoints", overwrite)
    model, params = models.load_hf(hub.resolve(source), dtype=dtype)
    meta = {"model": dataclasses.asdict(model.config), "source": str(source)}
    with Checkpointer(Path(target) / "checkpoints", asynchronous=False) as checkpointer:
        checkpointer.save(0, {"params": params}, meta)


def to_hf(
    source: str,
    target: str,
    *,
    model: str | None = None,
    dtype: str | None = None,
    tokenizer: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the parameters of a checkpoint (a stage's latest, or one step's) as a Hugging Face folder.

    `model` names a preset; by default the configuration in the checkpoint is used. Padding rows of the embedding and
    the head are written too, because the vocabulary size in `config.json` includes them.
    """
    if Path(target).is_dir() and any(Path(target).iterdir()) and not overwrite:
        raise UserError(f"{target} is not empty; give another folder, or --overwrite to replace it")
    config = models.preset(model) if model else model_of(source)
    models.save_hf(models.build(config), restore_params(source), target, dtype=dtype, tokenizer_folder=tokenizer)
