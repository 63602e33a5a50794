"""The compiled programs of a reinforcement learning stage: updates, log-probabilities, values, the sampling policy.

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
from models.decoder import cast_kernels
from models.model import Model

PyTree = Any
Shapes = dict[str, jax.ShapeDtypeStruct]


class RLPrograms:
    """Jitted functions, to be called or lowered.

    Attributes:
        policy_of: `(trained, frozen)` → the parameters that sample rollouts: adapters merged, kernels in the compute
            dtype.
        token_scores: `(params, rows)` → log-probabilities and entropies of all targets.
        values: `(params, rows)` → the value model's predictions; only with a value model.
        policy_step, value_step: the train steps; `value_step` only with a value model.
    """

    def __init__(self, stage: RL, mesh: jax.sharding.Mesh, policy: TrainStateInit, value: TrainStateInit | None):
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self.mesh = mesh
        batch = sharding.batch_sharding(mesh)
        self.policy_of = _policy_of(stage, policy)
        self.options = compiler.options(mesh, stage.compute)
        # `Any`: a jitted function, which `update` lowers.
        step: Any = functools.partial(make_train_step, accumulate=stage.accumulate, options=self.options)
        objective = policy.adapted(stage.objective(policy.model, training=True), training=True)
        self.policy_step = step(objective, policy.optimizer, shardings=(policy.layout, batch, everywhere))
        # The policy and the reference have the same dtype (`policy_of`) and share one program, so that equal parameters
        # give bit-identical log-probabilities.
        scores = functools.partial(_scores, policy.model, stage.temperature)
        self.token_scores = compiler.scorer(scores, mesh, stage.compute)
        if value is not None:
            regression = stage.value_objective(value.model)
            self.value_step = step(regression, value.optimizer, shardings=(value.layout, batch, everywhere))
            self.values = compiler.scorer(functools.partial(token_values, value.model), mesh, stage.compute)

    def update(self, name: str, state: State, frozen: PyTree, batch: Shapes) -> jax.stages.Lowered:
        """Lowers the update of the "policy" or the "value" model for batches of these shapes. States may be shapes."""
        rows = sharding.batch_with_shardings(batch, self.mesh)
        if name == "value":
            return self.value_step.lower(state, rows, {})
        return self.policy_step.lower(state, rows, frozen)


def _policy_of(stage: RL, policy: TrainStateInit) -> Callable[[PyTree, PyTree], PyTree]:
    def policy_of(params: PyTree, frozen: PyTree) -> PyTree:
        whole = params if stage.lora is None else lora.merge(frozen["base"], params, stage.lora)
        whole = cast_kernels(whole, stage.compute.dtype)
        # A stale policy is kept after the next update, so it must not share buffers that the update donates.
        return jax.tree.map(jnp.copy, whole) if stage.asynchronous else whole

    return jax.jit(policy_of, out_shardings=policy.base_layout)


def _scores(model: Model, temperature: float, params: PyTree, batch: dict[str, jax.Array]):
    scores = target_scores(model, params, batch, temperature=temperature)
    return scores.logprobs, scores.entropy
