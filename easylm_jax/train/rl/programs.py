"""The compiled programs of a stage of reinforcement learning: updates, scores, and the policy as it writes.

Nothing here needs data or parameters: `easylm plan` compiles the same programs from shapes alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from easylm_jax.config import RL
from easylm_jax.objectives import target_scores, token_values
from easylm_jax.runtime import compiler, sharding
from easylm_jax.train import lora
from easylm_jax.train.state import TrainStateInit
from easylm_jax.train.step import State, make_train_step
from models.decoder import Decoder, cast_kernels

PyTree = Any
Shapes = dict[str, jax.ShapeDtypeStruct]


class RLPrograms:
    """Functions to be called or lowered.

    `policy_of(trained, frozen)` is the policy as it writes: adapters merged, kernels in the type that is computed in.
    `token_scores(params, rows)` gives log-probabilities and entropies of all targets, `values(params, rows)` what the
    value model expects.
    """

    def __init__(self, stage: RL, mesh: jax.sharding.Mesh, policy: TrainStateInit, value: TrainStateInit | None):
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self.mesh = mesh
        batch = sharding.batch_sharding(mesh)
        self.policy_of = _policy_of(stage, policy)
        self.options = compiler.options(mesh, stage.compute)
        step = functools.partial(make_train_step, accumulate=stage.accumulate, options=self.options)
        objective = policy.adapted(stage.objective(policy.model, training=True), training=True)
        self.policy_step = step(
            objective, policy.optimizer, shardings=(policy.layout, batch, everywhere)
        )  # fmt: skip
        # One program for the policy and the reference, which are of one type (`policy_of`), so that equal parameters
        # give equal numbers to the last bit.
        scores = functools.partial(_scores, policy.model, stage.temperature)
        self.token_scores = compiler.scorer(scores, mesh, stage.compute)
        if value is not None:
            regression = stage.value_objective(value.model)
            self.value_step = step(
                regression, value.optimizer, shardings=(value.layout, batch, everywhere)
            )  # fmt: skip
            self.values = compiler.scorer(functools.partial(token_values, value.model), mesh, stage.compute)

    def update(self, name: str, state: State, frozen: PyTree, batch: Shapes) -> jax.stages.Lowered:
        """The update of the "policy" (beside what is frozen) or the "value" model for batches of these shapes, lowered.
        States may be shapes."""
        rows = sharding.batch_with_shardings(batch, self.mesh)
        if name == "value":
            return self.value_step.lower(state, rows, {})
        return self.policy_step.lower(state, rows, frozen)


def _policy_of(stage: RL, policy: TrainStateInit) -> Callable[[PyTree, PyTree], PyTree]:
    def policy_of(params: PyTree, frozen: PyTree) -> PyTree:
        whole = params if stage.lora is None else lora.merge(frozen["base"], params, stage.lora)
        whole = cast_kernels(whole, stage.compute.dtype)
        # A policy that is kept must not share memory with parameters that the next update overwrites.
        return jax.tree.map(jnp.copy, whole) if stage.asynchronous else whole

    return jax.jit(policy_of, out_shardings=policy.base_layout)


def _scores(model: Decoder, temperature: float, params: PyTree, batch: dict[str, jax.Array]):
    scores = target_scores(model, params, batch, temperature=temperature)
    return scores.logprobs, scores.entropy
