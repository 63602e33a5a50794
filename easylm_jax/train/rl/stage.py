"""Sets up a reinforcement learning stage: policy, value model, reference, scorer, generator and prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax.checkpoint.load import ModelSource, model_from
from easylm_jax.config import RL, Recipe
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import Cache, Loader, load_tokenizer
from easylm_jax.data.build import held_out_cache, stage_cache
from easylm_jax.decode import rollout
from easylm_jax.decode.generator import check_context_length, check_pictures, prepare_generator
from easylm_jax.rewards.scorer import make_scorer
from easylm_jax.rewards.verify import ExpressionScorer
from easylm_jax.runtime import processes, sharding
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.train.optimizer import make_optimizer
from easylm_jax.train.rl.exchange import Exchange
from easylm_jax.train.rl.job import REPLICATED, RLState, RolloutJob
from easylm_jax.train.rl.programs import RLPrograms
from easylm_jax.train.rl.trainer import reinforce
from easylm_jax.train.stage import checkpoint_meta, count_steps
from easylm_jax.train.state import TrainStateInit, stage_model
from models.errors import UserError

PyTree = Any


def train_on_rollouts(stage: RL, workspace: Workspace) -> dict[str, Any]:
    """Runs a reinforcement learning stage to its end; returns the content of `done.json`."""
    job = make_job(stage, workspace)
    metrics = reinforce(job)
    return {
        "step": job.steps,
        "checkpoint": job.policy.finalize(job.folder, job.frozen, job.steps, job.meta),
        "metrics": metrics,
        "data": {**{name: job.loader.cache.manifest.get(name) for name in ("rows", "prompts", "tokens")},
                 **_left_out(job.loader.cache)},
        **({} if job.held_out is None else {"held_out": {"prompts": job.held_out.rows, **_left_out(job.held_out)}}),
    }  # fmt: skip


def _left_out(prompts: Cache) -> dict[str, Any]:
    """How many prompts were read, and of these left out by reason."""
    return {"read": prompts.records_read, "left_out": prompts.left_out}


def make_job(stage: RL, workspace: Workspace) -> RolloutJob:
    """The job of a stage, with everything checked; models that are not trained are loaded onto the devices."""
    meshes = _make_meshes(stage, workspace.recipe)
    mesh = meshes.train
    source = _checked_source(stage, workspace, meshes)
    cache = stage_cache(workspace, stage.data, stage.name)
    held_out = held_out_cache(workspace, stage, stage.validation)
    tokenizer = load_tokenizer(workspace.data(stage.data).tokenizer)
    generator = prepare_generator(
        stage.name, source.decoder, tokenizer, stage.sampling, meshes.decode,
        [prompts for prompts in (cache, held_out) if prompts],
        slots=min(stage.sampling.slots, stage.responses_per_step),
    )  # fmt: skip
    steps = count_steps(stage, Loader(cache, stage.batch, stage.seed, stage.epochs))
    # Without epochs, since rollouts may use more prompt batches than there are steps.
    loader = Loader(cache, stage.batch, stage.seed)
    rollouts = steps - stage.value_warmup
    policy = TrainStateInit(stage, source, make_optimizer(stage.optimizer, max(1, rollouts) * stage.updates), mesh)
    value = _value_init(stage, workspace, mesh, steps)
    if value is not None:
        check_context_length(stage.name, value.source.config, cache, stage.sampling.max_new_tokens)
        check_pictures(f"stage {stage.name}: value model", value.source.config, stage.data.vision)
    scorer = make_scorer(
        stage.name, stage.reward, workspace, meshes.rollout, cache, tokenizer, stage.compute, stage.score_rows,
        stage.seed, stage.sampling.max_new_tokens, meshes.decode,
    )  # fmt: skip
    with jax.set_mesh(mesh):
        frozen = {} if stage.lora is None else {"base": policy.base()}
        reference = _reference(stage, workspace, mesh, source)
    programs = RLPrograms(stage, mesh, policy, value)
    stale = jax.eval_shape(programs.policy_of, policy.abstract().params, frozen)
    rollout_layout = source.layout(meshes.rollout)
    exchange = None
    if processes.of_mesh(meshes.rollout) != processes.of_mesh(mesh):
        exchange = Exchange(stale, policy.base_layout, rollout_layout, mesh, meshes.rollout)

    return RolloutJob(
        name=stage.name,
        folder=workspace.folder(stage.name),
        mesh=mesh,
        abstract_state=_abstract_state(stage, policy, value, stale),
        layout=_state_layout(stage, policy, value, mesh),
        fresh_state=lambda: _fresh_state(stage, policy, value, mesh, lambda params: programs.policy_of(params, frozen)),
        fingerprint=loader.fingerprint,
        validates=held_out is not None,
        validate_every=stage.validation.every if stage.validation else None,
        steps=steps,
        checkpoints=stage.checkpoints,
        monitoring=stage.monitoring,
        meta=checkpoint_meta(stage, source.config, tokenizer.spec, workspace.settings(stage)),
        stage=stage,
        policy=policy,
        value=value,
        programs=programs,
        rollout_layout=rollout_layout,
        decode_mesh=meshes.decode,
        frozen=frozen,
        reference=reference,
        scorer=scorer,
        loader=loader,
        held_out=held_out,
        generator=generator,
        tokenizer=tokenizer,
        exchange=exchange,
    )


class _Meshes(NamedTuple):
    """The devices that train; those that sample and score rollouts (the same, unless the stage reserves some); and the
    latter arranged as the mesh on which the engine decodes."""

    train: jax.sharding.Mesh
    rollout: jax.sharding.Mesh
    decode: jax.sharding.Mesh


def _make_meshes(stage: RL, recipe: Recipe) -> _Meshes:
    train, rollouts = _split_devices(stage, recipe.mesh)
    return _Meshes(train, rollouts, sharding.decode_mesh_of(stage.name, rollouts, recipe.decode_mesh))


def _split_devices(stage: RL, text: str) -> tuple[jax.sharding.Mesh, jax.sharding.Mesh]:
    """The meshes that train and that sample rollouts: the same, or disjoint with `rollout_devices`."""
    reserved = stage.rollout_devices
    if reserved is None:
        mesh = make_mesh(text)
        return mesh, mesh
    devices = list(make_mesh("fsdp=-1").devices.flat)
    if jax.process_count() > 1:  # whole processes: each either trains or samples
        devices.sort(key=lambda device: (device.process_index, device.id))
    if reserved >= len(devices):
        raise UserError(
            f"stage {stage.name}: rollout_devices is {reserved}, but there are {len(devices)} devices in all; "
            "leave at least one for training"
        )
    train, rollouts = devices[:-reserved], devices[-reserved:]
    if jax.process_count() > 1 and train[-1].process_index == rollouts[0].process_index:
        raise UserError(
            f"stage {stage.name}: rollout_devices is {reserved}, but with several processes it must be the devices of "
            f"whole processes, a multiple of {jax.local_device_count()}"
        )
    return make_mesh(text, train), make_mesh("fsdp=-1", rollouts)


def _checked_source(stage: RL, workspace: Workspace, meshes: _Meshes) -> ModelSource:
    """The policy's model, after all checks that need neither data nor weights."""
    _check_rows(stage, meshes.train)
    if stage.reward.verifier is not None:
        ExpressionScorer(stage.reward.verifier, model_scores=True)
    if stage.check is not None:
        ExpressionScorer(stage.check)
    source = stage_model(stage, workspace, meshes.train)
    for mesh in (meshes.train, meshes.decode):
        sharding.check_heads(source.config, mesh)
        source.layout(mesh)
    return source


def _reference(stage: RL, workspace: Workspace, mesh: jax.sharding.Mesh, source: ModelSource) -> PyTree:
    """The frozen parameters of the reference, which must have the policy's architecture."""
    name = stage.reference or stage.init
    assert name is not None  # checked by the stage
    reference = model_from(workspace.model(name), mesh, compute=stage.compute)
    if reference.config.architecture != source.config.architecture:
        raise UserError(
            f"stage {stage.name}: the reference {name} has another architecture than the policy {stage.init}; name a "
            "model of the same architecture"
        )
    return reference.frozen(mesh)


def _check_rows(stage: RL, mesh: jax.sharding.Mesh) -> None:
    sharding.check_rows(stage.update_rows, stage.accumulate, mesh)
    sharding.check_length(rollout.LEAST_WIDTH, mesh)  # rows are padded to multiples of it
    if stage.group_rows > 1:
        sharding.check_rows(stage.update_rows // stage.group_rows, stage.accumulate, mesh)


def _value_init(stage: RL, workspace: Workspace, mesh: jax.sharding.Mesh, steps: int) -> TrainStateInit | None:
    """The initial train state of the value model, which has its own trunk and optimizer and no adapter."""
    if stage.value_init is None:
        return None
    source = model_from(
        workspace.model(stage.value_init), mesh, compute=stage.compute, scalar_head=True, seed=stage.seed
    )
    optimizer = make_optimizer(stage.optimizers.get("value_optimizer", stage.optimizer), steps * stage.updates)
    return TrainStateInit(dataclasses.replace(stage, lora=None), source, optimizer, mesh)


def _abstract_state(stage: RL, policy: TrainStateInit, value: TrainStateInit | None, stale: PyTree) -> RLState:
    """Shapes and types of everything that a step changes."""
    initial = policy.abstract()
    counter = jax.ShapeDtypeStruct((), jnp.int32)
    return RLState(
        step=counter, params=initial.params, opt=initial.opt, rng=initial.rng, updates=counter,
        value=None if value is None else value.abstract(), kl=jax.ShapeDtypeStruct((), jnp.float32),
        prompt_batches_used=counter, stale_policies=(stale,) * stage.asynchronous,
    )  # fmt: skip


def _state_layout(stage: RL, policy: TrainStateInit, value: TrainStateInit | None, mesh: jax.sharding.Mesh) -> RLState:
    replicated = dict.fromkeys(REPLICATED, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    stale = (policy.base_layout,) * stage.asynchronous
    return RLState(
        params=policy.layout.params, opt=policy.layout.opt, value=None if value is None else value.layout,
        stale_policies=stale, **replicated,
    )  # fmt: skip


def _fresh_state(
    stage: RL,
    policy: TrainStateInit,
    value: TrainStateInit | None,
    mesh: jax.sharding.Mesh,
    policy_of: Callable[[PyTree], PyTree],
) -> RLState:
    """The state before the first rollout, on the mesh; `policy_of` gives the parameters that sample rollouts."""
    initial = policy.state()
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    scalars: dict[str, Any] = {name: np.int32(0) for name in ("step", "updates", "prompt_batches_used")}
    scalars["kl"] = np.float32(getattr(stage, "kl", 0.0))
    placed = {name: sharding.everywhere(value, replicated) for name, value in scalars.items()}
    stale = tuple(policy_of(initial.params) for _ in range(stage.asynchronous))
    return RLState(
        params=initial.params, opt=initial.opt, rng=initial.rng, value=None if value is None else value.state(),
        stale_policies=stale, **placed,
    )  # fmt: skip
