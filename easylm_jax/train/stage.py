"""Runs a stage that trains on prepared data: pre-training, SFT, reward models and preference training."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from easylm_jax.config import Train, fields
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import Cache, Loader, load_tokenizer
from easylm_jax.data.build import held_out_cache, stage_cache
from easylm_jax.decode.generator import check_pictures
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
    """Runs a stage that trains on a packed cache to its end; returns the content of `done.json`."""
    job, start, cache = _make_job(stage, workspace)
    metrics = train(job)
    facts = ("rows", "pairs", "tokens", "trained_tokens", "unigram_entropy_nats")
    return {
        "step": job.steps,
        "checkpoint": start.finalize(job.folder, job.frozen, job.steps, job.meta),
        "metrics": metrics,
        "data": {name: cache.manifest.get(name) for name in facts},
    }


def _make_job(stage: Train, workspace: Workspace) -> tuple[TrainJob, TrainStateInit, Cache]:
    """The job of a stage, the initial train state, and the cache that it trains on."""
    # All checks that need no data come first, since a large cache takes hours to build.
    mesh = make_mesh(workspace.recipe.mesh)
    sharding.check_rows(stage.batch, stage.accumulate, mesh)
    for data in [stage.data] if stage.validation is None else [stage.data, stage.validation.data]:
        sharding.check_length(data.sequence_length, mesh)
    source = stage_model(stage, workspace, mesh)
    sharding.check_heads(source.config, mesh)
    for data in stage.all_data:
        check_pictures(f"stage {stage.name}", source.config, data.vision)
    model = source.decoder
    objective = stage.objective(model, training=True)
    if stage.benchmarks is not None and stage.lora is not None:
        raise UserError(f"stage {stage.name}: benchmarks are not asked of an adapter; evaluate its merged model")
    ask = workspace.asker(stage, model, mesh)
    tokenizer = workspace.data(stage.data).tokenizer
    cache = stage_cache(workspace, stage.data, stage.name)
    held_out = held_out_cache(workspace, stage, stage.validation)
    loader = Loader(cache, stage.batch, stage.seed, stage.epochs)
    steps = count_steps(stage, loader)
    optimizer = make_optimizer(stage.optimizer, steps, stage.batch * cache.sequence_length)
    start = TrainStateInit(stage, source, optimizer, mesh)

    with jax.set_mesh(mesh):
        frozen = {} if stage.lora is None else {"base": start.base()}
        if stage.reference_source is not None:
            base = frozen.get("base") or start.base()
            if stage.reference_source == "model":
                frozen["reference"] = base
            else:
                cache = with_reference(cache, model, base, stage.batch, mesh, stage.name)
                if held_out is not None:
                    held_out = with_reference(held_out, model, base, stage.batch, mesh, f"{stage.name}: held-out data")
                loader = Loader(cache, stage.batch, stage.seed, stage.epochs)
            del base
    job = TrainJob(
        name=stage.name,
        folder=workspace.folder(stage.name),
        mesh=mesh,
        abstract_state=start.abstract(),
        layout=start.layout,
        fresh_state=start.state,
        fingerprint=loader.fingerprint,
        validates=held_out is not None,
        validate_every=stage.validation.every if stage.validation else None,
        ask=ask,
        ask_every=stage.benchmarks.every if stage.benchmarks else None,
        steps=steps,
        checkpoints=stage.checkpoints,
        monitoring=stage.monitoring,
        meta=checkpoint_meta(stage, source.config, tokenizer, workspace.settings(stage)),
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
    return job, start, cache


def count_steps(stage: Train, loader: Loader) -> int:
    """The number of steps of a stage, limited by `steps` or `epochs`, whichever ends first."""
    steps = min(length for length in (stage.steps, loader.steps) if length is not None)
    if steps == 0:
        raise UserError(
            f"stage {stage.name}: {stage.epochs} epochs of {loader.cache.rows} rows give no whole batch of "
            f"{stage.batch}; lower batch, or give more data or epochs"
        )
    planned, rows = stage.examples, loader.cache.rows
    if planned is not None and stage.whole_rows and abs(rows - planned) > 0.02 * planned:
        log_once(f"{stage.name}: the data has {rows:,} rows, but the recipe was planned with examples={planned:,}")
    return steps


def checkpoint_meta(stage: Train, config: DecoderConfig, tokenizer: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a stage's checkpoints: its model, tokenizer and settings."""
    return {
        "model": dataclasses.asdict(config),
        "tokenizer": tokenizer,
        "tokenizer_hash": load_tokenizer(tokenizer).hash,
        "config": fields.encode(stage),
        "config_hash": fields.digest(settings),
    }
