"""Between Hugging Face's folders and checkpoints of this project, parameters alone."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
from easylm_jax import checkpoint_store, hub
from easylm_jax.checkpoint import Checkpointer, guard_fresh_start, restore_params
from models.config import DecoderConfig, RopeScaling
from models.errors import UserError


def main(arguments: argparse.Namespace) -> int:
    """`easylm convert FROM TO`: which way follows from what FROM is."""
    source, target = arguments.source, arguments.target
    if is_checkpoint(source):
        to_hf(
            source,
            target,
            model=arguments.model,
            dtype=arguments.dtype,
            tokenizer=arguments.tokenizer,
            overwrite=arguments.overwrite,
        )
    else:
        if arguments.tokenizer:
            raise UserError("--tokenizer goes with a checkpoint as FROM; a checkpoint as TO holds no tokenizer")
        from_hf(source, target, dtype=arguments.dtype, overwrite=arguments.overwrite)
    print(f"wrote {target}")
    return 0


def is_checkpoint(folder: str) -> bool:
    """Whether `folder` is a stage's folder, its `checkpoints` folder or one step of it."""
    path = Path(folder)
    return (
        (path / "checkpoints").is_dir()
        or (path / checkpoint_store.MANIFEST).is_file()
        or bool(path.is_dir() and checkpoint_store.committed_steps(path))
    )


def from_hf(source: str, target: str, *, dtype: str | None = None, overwrite: bool = False) -> None:
    """Writes the model of a Hugging Face folder (or hub name) as step 0 of the stage folder `target`."""
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

    `model` names a preset; without it the checkpoint's own description counts. Padding rows of the embedding and the
    head are written too, since `config.json` gives their number.
    """
    if Path(target).is_dir() and any(Path(target).iterdir()) and not overwrite:
        raise UserError(f"{target} is not empty; give another folder, or --overwrite to replace it")
    config = models.preset(model) if model else model_of(source)
    models.save_hf(models.build(config), restore_params(source), target, dtype=dtype, tokenizer_folder=tokenizer)


def model_of(folder: str) -> DecoderConfig:
    """The model that a checkpoint's meta describes under "model", or else its stage's `config.json`."""
    step_folder = checkpoint_store.resolve(folder)
    description = checkpoint_store.read_meta(step_folder).get("model")
    stage_config = step_folder.parent.parent / "config.json"
    if description is None and stage_config.is_file():
        description = json.loads(stage_config.read_text()).get("model")
    if description is None:
        raise UserError(f"{step_folder} does not say what model it holds; name a preset with --model")
    return read_model_config(description)


def read_model_config(description: str | Mapping[str, Any]) -> DecoderConfig:
    """A preset's name, or the fields of a `DecoderConfig` as JSON has them."""
    if isinstance(description, str):
        return models.preset(description)
    fields = dict(description)
    if fields.get("rope_scaling"):
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    known = {field.name for field in dataclasses.fields(DecoderConfig)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise UserError(
            f"the checkpoint's model has unknown fields {', '.join(unknown)}; use the version that wrote it"
        )
    return DecoderConfig(**fields)
