"""Puts a stage of reinforcement learning together: policy, value model, reference, reward model, engine, prompts."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax import checkpoint_store, lora, sharding
from easylm_jax.config import PPO, RL, OnlineDPO, Reward
from easylm_jax.data import Cache, Loader, load_tokenizer
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.mesh import make_mesh
from easylm_jax.objectives import value_regression
from easylm_jax.optimizer import make_optimizer
from easylm_jax.rewards import verifier
from easylm_jax.rl_trainer import REPLICATED, RLState, RolloutJob, reinforce
from easylm_jax.rollout import Judge
from easylm_jax.stages import meta_of, steps_of
from easylm_jax.start import Model, Start, model_from, stage_model
from models.config import Compute
from models.errors import UserError

if TYPE_CHECKING:
    from easylm_jax.experiment import Experiment

PyTree = Any


def run(stage: RL, experiment: Experiment, settings: dict[str, Any]) -> dict[str, Any]:
    """Runs a stage of reinforcement learning to its end; returns what `done.json` will say."""
    job = job_of(stage, experiment, settings)
    metrics = reinforce(job)
    return {
        "step": job.steps,
        "checkpoint": job.policy.leave(job.folder, job.frozen, job.steps, job.meta),
        "metrics": metrics,
        "data": {name: job.loader.cache.manifest.get(name) for name in ("rows", "prompts", "tokens")},
    }


def job_of(stage: RL, experiment: Experiment, settings: dict[str, Any]) -> RolloutJob:
    """All that a stage needs, checked; the models that are not trained are on the devices already."""
    mesh = make_mesh(experiment.recipe.mesh)
    # What needs no data and no weights is looked at first.
    _check_rows(stage, mesh)
    for name in filter(None, (stage.reward.verifier, stage.check)):
        verifier(name)
    source = stage_model(stage, experiment, mesh)
    check_can_speak(stage.name, source)
    sharding.check_heads(source.config, mesh)
    cache = experiment.cache(stage.data)
    held_out = experiment.cache(stage.validation.data) if stage.validation else None
    for prompts in filter(None, (cache, held_out)):
        check_room(stage.name, source, prompts, stage.sampling.max_new_tokens)
    tokenizer = load_tokenizer(experiment.data(stage.data).tokenizer)
    check_same_tokenizer(stage.name, "policy", str(stage.init), source, tokenizer)
    loader = Loader(cache, stage.batch, stage.seed, stage.epochs)
    steps = steps_of(stage, loader)
    rollouts = steps - stage.value_only if isinstance(stage, PPO) else steps
    policy = Start(stage, source, make_optimizer(stage.optimizer, max(1, rollouts) * stage.updates), mesh)
    value = _value_start(stage, experiment, mesh, tokenizer, steps)
    judge = judge_of(stage.name, stage.reward, experiment, mesh, cache, tokenizer, stage.compute, stage.score_rows)
    with jax.set_mesh(mesh):
        frozen = {} if stage.lora is None else {"base": policy.base()}
        reference = _reference(stage, experiment, mesh, source)

    return RolloutJob(
        name=stage.name,
        folder=experiment.folder(stage.name),
        mesh=mesh,
        abstract_state=jax.eval_shape(lambda: _state(stage, policy.abstract(), value and value.abstract())),
        layout=_layout(policy, value, mesh),
        fresh_state=lambda: _fresh(stage, policy, value, mesh),
        fingerprint=loader.fingerprint,
        validates=held_out is not None,
        validate_every=stage.validation.every if stage.validation else None,
        steps=steps,
        checkpoints=stage.checkpoints,
        monitoring=stage.monitoring,
        meta=meta_of(stage, source.config, tokenizer.spec, settings),
        stage=stage,
        policy=policy,
        value=value,
        policy_objective=policy.adapted(stage.objective(source.decoder, training=True), training=True),
        value_objective=_value_objective(stage, value),
        merge=functools.partial(_merged, stage),
        frozen=frozen,
        reference=reference,
        judge=judge,
        loader=loader,
        held_out=held_out,
        tokenizer=tokenizer,
    )


def _reference(stage: RL, experiment: Experiment, mesh: jax.sharding.Mesh, source: Model) -> PyTree:
    """The parameters that divergence is measured from; they belong to the policy's own architecture."""
    reference = model_from(stage.reference or stage.init, experiment, mesh, compute=stage.compute)
    if reference.config.replace(dropout=0.0) != source.config.replace(dropout=0.0):
        raise UserError(f"stage {stage.name}: the reference is a model of another shape than the policy")
    return reference.frozen(mesh)


def _merged(stage: RL, params: PyTree, frozen: PyTree) -> PyTree:
    """The policy's own parameters from those that are trained."""
    return params if stage.lora is None else lora.merge(frozen["base"], params, stage.lora)


def _check_rows(stage: RL, mesh: jax.sharding.Mesh) -> None:
    sharding.check_rows(stage.update_rows, stage.accumulate, mesh)
    if isinstance(stage, OnlineDPO):
        sharding.check_rows(stage.update_rows // stage.samples, stage.accumulate, mesh)


def _value_start(
    stage: RL, experiment: Experiment, mesh: jax.sharding.Mesh, tokenizer: Tokenizer, steps: int
) -> Start | None:
    """The value model's train state: its own trunk and optimiser; no adapter."""
    if not isinstance(stage, PPO):
        return None
    source = model_from(stage.value_init, experiment, mesh, compute=stage.compute, scalar_head=True, seed=stage.seed)
    check_same_tokenizer(stage.name, "value model", stage.value_init, source, tokenizer)
    optimizer = make_optimizer(stage.value_optimizer or stage.optimizer, steps * stage.updates)
    return Start(dataclasses.replace(stage, lora=None), source, optimizer, mesh)


def _value_objective(stage: RL, value: Start | None):
    if value is None:
        return None
    assert isinstance(stage, PPO)
    return value_regression(value.model, clip=stage.value_clip, coefficient=stage.value_coefficient)


def _state(stage: RL, policy, value) -> RLState:
    kl = getattr(stage, "kl", 0.0)
    zero = jnp.zeros((), jnp.int32)
    return RLState(zero, policy.params, policy.opt, policy.rng, jnp.zeros((), jnp.int32), value, jnp.float32(kl))


def _layout(policy: Start, value: Start | None, mesh: jax.sharding.Mesh) -> RLState:
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    own = dict.fromkeys(REPLICATED, everywhere)
    return RLState(params=policy.layout.params, opt=policy.layout.opt, value=value and value.layout, **own)


def _fresh(stage: RL, policy: Start, value: Start | None, mesh: jax.sharding.Mesh) -> RLState:
    """The state before the first rollout, on the mesh."""
    first = policy.state()
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    counters = {"step": np.int32(0), "updates": np.int32(0), "kl": np.float32(getattr(stage, "kl", 0.0))}
    placed = {name: jax.device_put(number, everywhere) for name, number in counters.items()}
    return RLState(params=first.params, opt=first.opt, rng=first.rng, value=value and value.state(), **placed)


def judge_of(
    name: str, reward: Reward, experiment: Experiment, mesh: jax.sharding.Mesh, cache: Cache, tokenizer: Tokenizer,
    compute: Compute, rows: int,
) -> Judge:  # fmt: skip
    """What scores the answers of stage `name`; its reward model is frozen in the type that is computed in."""
    if reward.model is None:
        return Judge(reward, cache, tokenizer, mesh, model=None, params=None, rows=rows)
    source = model_from(reward.model, experiment, mesh, compute=compute)
    if not source.config.scalar_head:
        raise UserError(f"stage {name}: {reward.model} has no scalar head, so it is no reward model")
    check_same_tokenizer(name, "reward model", reward.model, source, tokenizer)
    with jax.set_mesh(mesh):
        return Judge(reward, cache, tokenizer, mesh, model=source.decoder, params=source.frozen(mesh), rows=rows)


def check_can_speak(name: str, source: Model) -> None:
    """A reward model has no vocabulary to write with."""
    if source.config.scalar_head:
        raise UserError(f"stage {name}: its policy is a reward model (scalar head), which cannot write")


def check_room(name: str, source: Model, prompts: Cache, max_new_tokens: int) -> None:
    """The longest prompt and a whole answer must fit into the context."""
    longest = int(np.asarray(prompts.columns["lengths"]).max())
    if longest + max_new_tokens > source.config.context:
        raise UserError(
            f"stage {name}: a prompt of {longest} tokens and {max_new_tokens} new ones are more than the model's "
            f"context of {source.config.context}; lower data.sequence_length (longer prompts are left out) or "
            "sampling.max_new_tokens"
        )


def check_same_tokenizer(name: str, what: str, init: str, source: Model, tokenizer: Tokenizer) -> None:
    """A model that scores the policy's tokens must know them by the same numbers."""
    theirs = _tokenizer_hash(init, source.folder)
    if theirs is not None and theirs != tokenizer.hash:
        raise UserError(
            f"stage {name}: the {what} {init} was trained with another tokenizer than the prompts' "
            f"({tokenizer.spec}); train it with the same one"
        )
    if tokenizer.vocab_size > source.config.vocab:
        raise UserError(
            f"stage {name}: the tokenizer has {tokenizer.vocab_size} tokens, the {what} {init} only "
            f"{source.config.vocab}"
        )


def _tokenizer_hash(init: str, folder: Path | None) -> str | None:
    """The content hash of the tokenizer that a model was trained with; None where nothing says so."""
    assert folder is not None
    if not init.startswith("hf:"):
        return checkpoint_store.read_meta(checkpoint_store.resolve(folder)).get("tokenizer_hash")
    try:
        return load_tokenizer(f"hf:{folder}").hash
    except UserError:  # a folder of weights alone
        return None
