"""Puts a stage of reinforcement learning together: policy, value model, reference, reward model, engine, prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax.checkpoint.load import ModelSource, check_same_tokenizer, model_from
from easylm_jax.config import RL, Recipe
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import Loader, load_tokenizer
from easylm_jax.data.build import stage_cache
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode import rollout
from easylm_jax.decode.generator import prepare_generator
from easylm_jax.rewards.scorer import make_scorer
from easylm_jax.rewards.verify import ExpressionScorer
from easylm_jax.runtime import sharding
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.train.optimizer import make_optimizer
from easylm_jax.train.rl.job import REPLICATED, RLState, RolloutJob
from easylm_jax.train.rl.programs import RLPrograms
from easylm_jax.train.rl.trainer import reinforce
from easylm_jax.train.stage import meta_of, steps_of
from easylm_jax.train.state import TrainStateInit, stage_model
from models.errors import UserError

PyTree = Any


def train_on_rollouts(stage: RL, workspace: Workspace) -> dict[str, Any]:
    """Runs a stage of reinforcement learning to its end; returns what `done.json` will say."""
    job = job_of(stage, workspace)
    metrics = reinforce(job)
    return {
        "step": job.steps,
        "checkpoint": job.policy.finalize(job.folder, job.frozen, job.steps, job.meta),
        "metrics": metrics,
        "data": {name: job.loader.cache.manifest.get(name) for name in ("rows", "prompts", "tokens")},
    }


def job_of(stage: RL, workspace: Workspace) -> RolloutJob:
    """All that a stage needs, checked; the models that are not trained are on the devices already."""
    mesh, writes, decodes = _meshes(stage, workspace.recipe)
    # What needs no data and no weights is looked at first.
    _check_rows(stage, mesh)
    if stage.reward.verifier is not None:
        ExpressionScorer(stage.reward.verifier, scored=True)
    if stage.check is not None:
        ExpressionScorer(stage.check)
    source = stage_model(stage, workspace, mesh)
    for each in (mesh, decodes):
        sharding.check_heads(source.config, each)
        source.layout(each)
    cache = stage_cache(workspace, stage.data)
    held_out = stage_cache(workspace, stage.validation.data) if stage.validation else None
    tokenizer = load_tokenizer(workspace.data(stage.data).tokenizer)
    check_same_tokenizer(stage.name, "policy", str(stage.init), source, tokenizer)
    generator = prepare_generator(
        stage.name, source.decoder, tokenizer, stage.sampling, decodes, [it for it in (cache, held_out) if it],
        slots=min(stage.sampling.slots, stage.responses_per_step),
    )  # fmt: skip
    steps = steps_of(stage, Loader(cache, stage.batch, stage.seed, stage.epochs))
    loader = Loader(
        cache, stage.batch, stage.seed
    )  # without an end: rollouts may draw more batches than there are steps
    rollouts = steps - stage.value_warmup
    policy = TrainStateInit(stage, source, make_optimizer(stage.optimizer, max(1, rollouts) * stage.updates), mesh)
    value = _value_start(stage, workspace, mesh, tokenizer, steps)
    judge = make_scorer(
        stage.name,
        stage.reward,
        workspace,
        writes,
        cache,
        tokenizer,
        stage.compute,
        stage.score_rows,
        stage.seed,
        decodes,
    )
    with jax.set_mesh(mesh):
        frozen = {} if stage.lora is None else {"base": policy.base()}
        reference = _reference(stage, workspace, mesh, source)
    programs = RLPrograms(stage, mesh, policy, value)
    stale = jax.eval_shape(programs.policy_of, policy.abstract().params, frozen)

    return RolloutJob(
        name=stage.name,
        folder=workspace.folder(stage.name),
        mesh=mesh,
        abstract_state=_abstract(stage, policy, value, stale),
        layout=_layout(stage, policy, value, mesh),
        fresh_state=lambda: _fresh(stage, policy, value, mesh, lambda params: programs.policy_of(params, frozen)),
        fingerprint=loader.fingerprint,
        validates=held_out is not None,
        validate_every=stage.validation.every if stage.validation else None,
        steps=steps,
        checkpoints=stage.checkpoints,
        monitoring=stage.monitoring,
        meta=meta_of(stage, source.config, tokenizer.spec, workspace.settings(stage)),
        stage=stage,
        policy=policy,
        value=value,
        programs=programs,
        writing_layout=source.layout(writes),
        decode_mesh=decodes,
        frozen=frozen,
        reference=reference,
        judge=judge,
        loader=loader,
        held_out=held_out,
        generator=generator,
        tokenizer=tokenizer,
    )


def _reference(stage: RL, workspace: Workspace, mesh: jax.sharding.Mesh, source: ModelSource) -> PyTree:
    """The parameters that divergence is measured from; they belong to the policy's own architecture."""
    reference = model_from(workspace.model(stage.reference or stage.init), mesh, compute=stage.compute)
    if reference.config.replace(dropout=0.0) != source.config.replace(dropout=0.0):
        raise UserError(f"stage {stage.name}: the reference is a model of another shape than the policy")
    return reference.frozen(mesh)


def _meshes(stage: RL, recipe: Recipe) -> tuple[jax.sharding.Mesh, jax.sharding.Mesh, jax.sharding.Mesh]:
    """The devices that train, those that write and judge, which are the same unless a stage sets some apart, and the
    latter in the shape in which they write."""
    mesh, writes = _devices(stage, recipe.mesh)
    return mesh, writes, sharding.decode_mesh_of(stage.name, writes, recipe.decode_mesh)


def _devices(stage: RL, text: str) -> tuple[jax.sharding.Mesh, jax.sharding.Mesh]:
    apart = stage.rollout_devices
    if apart is None:
        mesh = make_mesh(text)
        return mesh, mesh
    if jax.process_count() > 1:
        raise UserError(f"stage {stage.name}: rollout_devices are for one process; leave them out")
    devices = list(make_mesh("fsdp=-1").devices.flat)
    if apart >= len(devices):
        raise UserError(f"stage {stage.name}: rollout_devices is {apart}, but there are {len(devices)} devices in all")
    return make_mesh(text, devices[:-apart]), make_mesh("fsdp=-1", devices[-apart:])


def _check_rows(stage: RL, mesh: jax.sharding.Mesh) -> None:
    sharding.check_rows(stage.update_rows, stage.accumulate, mesh)
    sharding.check_length(rollout.LEAST_WIDTH, mesh)  # rows are padded to multiples of it
    if stage.group_rows > 1:
        sharding.check_rows(stage.update_rows // stage.group_rows, stage.accumulate, mesh)


def _value_start(
    stage: RL, workspace: Workspace, mesh: jax.sharding.Mesh, tokenizer: Tokenizer, steps: int
) -> TrainStateInit | None:
    """The value model's train state: its own trunk and optimiser; no adapter."""
    if stage.value_init is None:
        return None
    source = model_from(
        workspace.model(stage.value_init), mesh, compute=stage.compute, scalar_head=True, seed=stage.seed
    )
    check_same_tokenizer(stage.name, "value model", stage.value_init, source, tokenizer)
    optimizer = make_optimizer(stage.optimizers.get("value_optimizer", stage.optimizer), steps * stage.updates)
    return TrainStateInit(dataclasses.replace(stage, lora=None), source, optimizer, mesh)


def _abstract(stage: RL, policy: TrainStateInit, value: TrainStateInit | None, stale: PyTree) -> RLState:
    """Shapes and types of all that a step changes."""
    first = policy.abstract()
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return RLState(
        step=number, params=first.params, opt=first.opt, rng=first.rng, updates=number,
        value=value and value.abstract(), kl=jax.ShapeDtypeStruct((), jnp.float32), prompt_batches_used=number,
        stale_policies=(stale,) * stage.asynchronous,
    )  # fmt: skip


def _layout(stage: RL, policy: TrainStateInit, value: TrainStateInit | None, mesh: jax.sharding.Mesh) -> RLState:
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    own = dict.fromkeys(REPLICATED, everywhere)
    stale = (policy.base_layout,) * stage.asynchronous
    return RLState(
        params=policy.layout.params, opt=policy.layout.opt, value=value and value.layout, stale_policies=stale, **own
    )  # fmt: skip


def _fresh(
    stage: RL,
    policy: TrainStateInit,
    value: TrainStateInit | None,
    mesh: jax.sharding.Mesh,
    writes: Callable[[PyTree], PyTree],
) -> RLState:
    """The state before the first rollout, on the mesh; `writes` makes the policy as it writes."""
    first = policy.state()
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    counters = {name: np.int32(0) for name in ("step", "updates", "prompt_batches_used")}
    numbers = {**counters, "kl": np.float32(getattr(stage, "kl", 0.0))}
    placed = {name: jax.device_put(number, everywhere) for name, number in numbers.items()}
    stale = tuple(writes(first.params) for _ in range(stage.asynchronous))
    return RLState(
        params=first.params, opt=first.opt, rng=first.rng, value=value and value.state(), stale_policies=stale, **placed
    )  # fmt: skip
