"""Checks the models that stages read, before any work: their kind, their tokenizer and the length of their context.

`Stage.model_uses` lists the models of a stage with what the stage asks of them. A model may be a finished stage, a
checkpoint or a Hugging Face folder, whose files are read, or a stage that has not run yet, whose settings say what it
will leave. So a recipe whose last stage cannot use what its first one makes is refused at the start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from easylm_jax.checkpoint import hub
from easylm_jax.checkpoint.load import checked_meta, fresh_config, model_of, tokenizer_of
from easylm_jax.config import Train
from easylm_jax.config.base import ModelUse, Stage
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import load_tokenizer
from easylm_jax.data.tokenizer import Tokenizer, differing_token
from models.config import DecoderConfig
from models.errors import UserError
from models.hf.convert import read_config


@dataclasses.dataclass(frozen=True)
class _Known:
    """What is known of a model: its configuration, the specification of its tokenizer, and the hash of that one when
    the model was trained; None where it is not known."""

    config: DecoderConfig | None = None
    tokenizer: str | None = None
    tokenizer_hash: str | None = None


def check_models(stages: Iterable[Stage], workspace: Workspace, *, download: bool = False) -> None:
    """Checks every model that the stages read.

    With `download`, models on the Hub are fetched to be checked; without, those that are not here yet are left out.

    Raises:
        UserError: a stage is given a model of the wrong kind, one that was trained with another tokenizer than its data
            use, or one whose context is shorter than its rows; the message names the field.
    """
    for stage in stages:
        for use in stage.model_uses:
            _check(stage, use, workspace, download)


def _check(stage: Stage, use: ModelUse, workspace: Workspace, download: bool) -> None:
    known = _known(stage, use, workspace, download)
    what = f"stage {stage.name}: {use.field}" + (f" {use.name}" if use.name is not None else "")
    if known.config is not None:
        _check_kind(what, use, known.config)
        if known.config.context < use.tokens:
            raise UserError(
                f"stage {stage.name}: {use.tokens_field} needs a context of {use.tokens} tokens, but {use.field} "
                f"{use.name or ''}".rstrip()
                + f" has one of {known.config.context}; lower it, or use a model with a "
                "longer context"
            )
    for spec in dict.fromkeys(workspace.data(data).tokenizer for data in use.data):
        tokenizer = _load_tokenizer(spec, download)
        if tokenizer is not None and known.config is not None and tokenizer.vocab_size > known.config.vocab:
            raise UserError(
                f"{what}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {known.config.vocab} (vocab)"
            )
        why = _difference(known, spec, tokenizer, download)
        if why is not None:
            raise UserError(
                f"{what} was trained with another tokenizer than the one of the stage's data ({spec}): {why}; use the "
                "same one for both"
            )


def _check_kind(what: str, use: ModelUse, config: DecoderConfig) -> None:
    if use.kind == "language" and config.scalar_head:
        raise UserError(f"{what} is a reward model (scalar head), but a language model is needed here; name the policy")
    if use.kind == "reward" and not config.scalar_head:
        raise UserError(
            f"{what} has no scalar head, so it is not a reward model; name a model that a RewardModel stage trained"
        )


def _known(stage: Stage, use: ModelUse, workspace: Workspace, download: bool) -> _Known:
    """What is known of the model that a stage uses; of fresh parameters, what the stage says."""
    if use.name is None:
        return _Known(_planned_config(cast(Train, stage), workspace, download))
    if not use.name.startswith(("hf:", "run:")):
        return _of_stage(f"stage {stage.name}: {use.field}", use.name, workspace, download)
    return _of_files(use.name, download)


def _of_stage(what: str, name: str, workspace: Workspace, download: bool) -> _Known:
    source = workspace.recipe.stage(name)
    if source.derived_from is not None:
        if workspace.done(source) is not None:
            return _of_files(workspace.model(name), download)
        known = _known(source, ModelUse("", source.derived_from, "any"), workspace, download)
        config = None if known.config is None else source.derived(known.config)
        return dataclasses.replace(known, config=config)
    if not source.trains:
        raise UserError(
            f"{what} {name} is a {type(source).__name__} stage, which leaves no model; name one that trains"
        )
    if workspace.done(source) is not None:
        return _of_files(workspace.model(name), download)
    trained = cast(Train, source)
    return _Known(_planned_config(trained, workspace, download), workspace.data(trained.data).tokenizer)


def _planned_config(stage: Train, workspace: Workspace, download: bool) -> DecoderConfig | None:
    """The configuration of the model that a stage will leave; None if it is not known yet."""
    if stage.model is not None:
        tokenizer = _load_tokenizer(workspace.data(stage.data).tokenizer, download)
        config: DecoderConfig | None = fresh_config(stage.model, tokenizer)
    else:
        config = _known(stage, stage.model_uses[0], workspace, download).config
    return None if config is None else config.replace(scalar_head=config.scalar_head or stage.scalar_head)


def _of_files(name: str, download: bool) -> _Known:
    """What the files of a model `run:<folder>` or `hf:<folder or hub name>` say."""
    if name.startswith("run:"):
        folder = Path(name.removeprefix("run:"))
        step_folder, meta = checked_meta(folder)
        return _Known(model_of(str(step_folder)), tokenizer_of(step_folder, meta), meta.get("tokenizer_hash"))
    path = name.removeprefix("hf:")
    if hub.is_name(path) and not Path(path).is_dir() and not download:
        return _Known()
    folder = hub.resolve(path)
    return _Known(read_config(folder), f"hf:{folder}")


def _load_tokenizer(spec: str | None, download: bool) -> Tokenizer | None:
    """The tokenizer of a specification; None if its file is not here, such as that of a stage that has not run."""
    path = Path((spec or "").removeprefix("sp:").removeprefix("hf:"))
    if spec is None or not (path.exists() or (download and hub.is_name(str(path)))):
        return None
    try:
        return load_tokenizer(spec)
    except UserError:
        if path.is_dir():  # a model's folder may hold only weights
            return None
        raise


def _difference(known: _Known, spec: str, tokenizer: Tokenizer | None, download: bool) -> str | None:
    """How the tokenizer of a model differs from another one (`spec`, loaded if it is here); None if it does not, or if
    that cannot be known."""
    if tokenizer is None:
        unmade = known.tokenizer is not None and all(text.startswith("sp:") for text in (spec, known.tokenizer))
        return f"it uses {known.tokenizer}" if unmade and spec != known.tokenizer else None
    if known.tokenizer_hash == tokenizer.hash:
        return None
    own = _load_tokenizer(known.tokenizer, download)
    if own is None or known.tokenizer_hash not in (None, own.hash):
        return None if known.tokenizer_hash is None else "their hashes differ"
    return None if own.hash == tokenizer.hash else differing_token(own, tokenizer)
