"""The stages that train on data that is there already: set-up, the run, and what it leaves."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from easylm_jax.checkpoint.load import check_vocabulary
from easylm_jax.config import Train, fields
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import Loader, load_tokenizer
from easylm_jax.data.build import stage_cache
from easylm_jax.runtime import compiler, sharding
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.runtime.processes import log_once
from easylm_jax.train.optimizer import make_optimizer
from easylm_jax.train.reference_logprobs import with_reference
from easylm_jax.train.state import TrainStateInit, stage_model
from easylm_jax.train.supervised import TrainJob, train
from models.config import DecoderConfig
from models.errors import UserError


def train_on_data(stage: Train, workspace: Workspace) -> dict[str, Any]:
    """Runs a stage that trains on a packed cache to its end; returns what `done.json` will say."""
    folder = workspace.folder(stage.name)
    # What needs no data is looked at first: a large cache takes hours to build.
    mesh = make_mesh(workspace.recipe.mesh)
    sharding.check_rows(stage.batch, stage.accumulate, mesh)
    for data in (stage.data, stage.validation and stage.validation.data):
        if data is not None:
            sharding.check_length(data.sequence_length, mesh)
    source = stage_model(stage, workspace, mesh)
    sharding.check_heads(source.config, mesh)
    model = source.decoder
    objective = stage.objective(model, training=True)
    tokenizer = workspace.data(stage.data).tokenizer
    check_vocabulary(stage.name, source.config, tokenizer)
    cache = stage_cache(workspace, stage.data)
    held_out = stage_cache(workspace, stage.validation.data) if stage.validation else None
    loader = Loader(cache, stage.batch, stage.seed, stage.epochs)
    steps = steps_of(stage, loader)
    optimizer = make_optimizer(stage.optimizer, steps, stage.batch * cache.sequence_length)
    start = TrainStateInit(stage, source, optimizer, mesh)
    meta = meta_of(stage, source.config, tokenizer, workspace.settings(stage))
    with jax.set_mesh(mesh):
        frozen = {} if stage.lora is None else {"base": start.base()}
        if stage.reference_source is not None:
            base = frozen.get("base") or start.base()
            if stage.reference_source == "model":
                frozen["reference"] = base
            else:
                cache = with_reference(cache, model, base, stage.batch, mesh)
                held_out = with_reference(held_out, model, base, stage.batch, mesh) if held_out else None
                loader = Loader(cache, stage.batch, stage.seed, stage.epochs)
            del base
    metrics = train(
        TrainJob(
            name=stage.name,
            folder=folder,
            mesh=mesh,
            abstract_state=start.abstract(),
            layout=start.layout,
            fresh_state=start.state,
            fingerprint=loader.fingerprint,
            validates=held_out is not None,
            validate_every=stage.validation.every if stage.validation else None,
            steps=steps,
            checkpoints=stage.checkpoints,
            monitoring=stage.monitoring,
            meta=meta,
            model=model.config,
            objective=start.adapted(objective, training=True),
            score=start.adapted(stage.objective(model, training=False), training=False),
            optimizer=optimizer,
            frozen=frozen,
            loader=loader,
            held_out=held_out,
            accumulate=stage.accumulate,
            options=compiler.options(mesh, stage.compute),
        )
    )
    facts = ("rows", "pairs", "tokens", "trained_tokens", "unigram_entropy_nats")
    return {
        "step": steps,
        "checkpoint": start.finalize(folder, frozen, steps, meta),
        "metrics": metrics,
        "data": {name: cache.manifest.get(name) for name in facts},
    }


def steps_of(stage: Train, loader: Loader) -> int:
    """How many steps a stage takes: `steps` or `epochs`, whichever ends first."""
    steps = min(length for length in (stage.steps, loader.steps) if length is not None)
    if steps == 0:
        raise UserError(
            f"stage {stage.name}: {stage.epochs} epochs of {loader.cache.rows} rows give no whole batch of "
            f"{stage.batch}"
        )
    told, found = stage.examples, loader.cache.rows
    if told is not None and stage.whole_rows and abs(found - told) > 0.02 * told:
        log_once(f"{stage.name}: {found:,} rows of data, where the recipe was planned with examples={told:,}")
    return steps


def meta_of(stage: Train, config: DecoderConfig, tokenizer: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What every checkpoint of a stage says of its model."""
    return {
        "model": dataclasses.asdict(config),
        "tokenizer": tokenizer,
        "tokenizer_hash": load_tokenizer(tokenizer).hash,
        "config": fields.encode(stage),
        "config_hash": fields.digest(settings),
    }
