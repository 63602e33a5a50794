"""Converts parameters between Hugging Face folders and checkpoints of this project."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import models
from easylm_jax.checkpoint import hub, revision
from easylm_jax.checkpoint.checkpointer import Checkpointer, restore_params
from easylm_jax.checkpoint.load import model_of, model_tokenizer, resolve_model
from easylm_jax.checkpoint.resume import guard_fresh_start
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.data.tokenizer_export import padding_id, write_tokenizer
from models.config import DecoderConfig
from models.errors import UserError


def from_hf(source: str, target: str, *, dtype: str | None = None, overwrite: bool = False) -> None:
    """Writes the model of a Hugging Face folder (or hub name) as a checkpoint of the stage folder `target`: of the step
    that its revision names (`hf:allenai/OLMo-2-1124-7B@stage1-step928646-tokens3896B`), otherwise 0.

    `source` may begin with "hf:". The checkpoint records where it came from, so that its tokenizer is found again.
    """
    name = source.removeprefix("hf:")
    folder = hub.resolve(name)
    if overwrite or Path(target, "checkpoints").exists():
        guard_fresh_start(Path(target) / "checkpoints", overwrite)
    model, params = models.load_hf(folder, dtype=dtype)
    local = Path(name).expanduser()
    meta = {"model": dataclasses.asdict(model.config), "source": str(local.absolute()) if local.is_dir() else name}
    found = revision.parse(name) if "@" in name else None
    with Checkpointer(Path(target) / "checkpoints", asynchronous=False) as checkpointer:
        checkpointer.save(0 if found is None else found.step, {"params": params}, meta)


def to_hf(
    source: str,
    target: str,
    *,
    model: str | None = None,
    dtype: str | None = None,
    tokenizer: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Writes the parameters of a checkpoint (a stage's latest, or one step's) as a Hugging Face folder.

    The tokenizer, the chat template and the end tokens of the model are written along. Padding rows of the embedding
    and the head are written too, because the vocabulary size in `config.json` includes them.

    Args:
        model: name of a preset; by default the configuration in the checkpoint is used.
        tokenizer: `sp:FILE`, `hf:FOLDER` or a path; by default the one that the checkpoint was trained with.

    Returns:
        Warnings: what the export lacks to be used for generation.

    Raises:
        UserError: `target` is not empty, the checkpoint has no usable model, or the given tokenizer is not the model's.
    """
    if Path(target).is_dir() and any(Path(target).iterdir()) and not overwrite:
        raise UserError(f"{target} is not empty; give another folder, or --overwrite to replace it")
    resolved, meta, known = resolve_model(source.removeprefix("run:"))
    step_folder = resolved.removeprefix("run:")
    config = models.preset(model) if model else model_of(step_folder)
    warnings = []
    try:
        found = model_tokenizer(source, config, meta, tokenizer or known, own=known)
    except UserError as error:
        if tokenizer:
            raise
        found = None
        warnings.append(f"{target} has weights only, no tokenizer and no end token: {error}")
    with tempfile.TemporaryDirectory() as folder:
        if found is not None:
            fault = _write_companions(found, Path(folder), config, meta)
            warnings += [f"transformers cannot read the tokenizer in {target}: {fault}"] if fault else []
            config = _with_ids(config, found)
        models.save_hf(
            models.build(config), restore_params(step_folder), target, dtype=dtype,
            tokenizer_folder=None if found is None else folder,
        )  # fmt: skip
    return warnings


def _write_companions(tokenizer: Tokenizer, folder: Path, config: DecoderConfig, meta: dict[str, Any]) -> str | None:
    data = (meta.get("config") or {}).get("data") or {}
    fault = write_tokenizer(
        tokenizer, folder, template=data.get("template"), add_bos=bool(data.get("add_bos")), context=config.context
    )
    if config.scalar_head:  # a reward model generates nothing
        (folder / "generation_config.json").unlink()
    return fault


def _with_ids(config: DecoderConfig, tokenizer: Tokenizer) -> DecoderConfig:
    """The configuration with the control tokens of the tokenizer. Those of a preset belong to its own vocabulary."""
    own = config.eos_id == tokenizer.eos_id
    return config.replace(
        eos_id=tokenizer.eos_id,
        bos_id=config.bos_id if own and config.bos_id is not None else tokenizer.bos_id,
        pad_id=config.pad_id if own and config.pad_id is not None else padding_id(tokenizer),
    )
