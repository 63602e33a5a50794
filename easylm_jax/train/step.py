"""The train step and the score step: one shape for every objective.

An objective is a pure function `objective(params, batch, key, frozen) -> Loss`: sums and the denominator they will be
divided by. Because nothing is averaged before the end, micro-batches, hosts and packed rows add up exactly; the same
objective gives the same gradient however the batch is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from easylm_jax.objectives.base import Batch, Loss, Objective, PyTree, Sums
from easylm_jax.runtime.compiler import Options


class State(NamedTuple):
    """Everything a step changes: one tree, one checkpoint, one donation.

    `step` int32 counts updates tried; `rng` is raw key data (uint32), never advanced: each step folds its number in.
    """

    step: jax.Array
    params: PyTree
    opt: PyTree
    rng: jax.Array


# Leaves of a State that are whole on every device, for `sharding.state_shardings`: counters, the random key, and the
# optimiser's windows of scalars and constants.
REPLICATED_STATE = (
    "step", "rng", r"opt\.(.*\.)?(count|ns_coeffs)", r"opt\.(losses|grad_norms|recorded|skipped_total|skipped_in_row)"
)  # fmt: skip


def new_state(params: PyTree, opt: PyTree, seed: int) -> State:
    """The state before the first step."""
    return State(jnp.zeros((), jnp.int32), params, opt, jax.random.key_data(jax.random.key(seed)))


def micro_batches(batch: Batch, accumulate: int) -> Batch:
    """[rows, …] → [accumulate, rows / accumulate, …].

    Micro-batch a takes every accumulate-th row. A device holds a contiguous run of rows, so this way each has an equal
    share of every micro-batch and nothing moves between devices.
    """

    def cut(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 0, 1)

    return jax.tree.map(cut, batch)


def gradients(
    objective: Objective, params: PyTree, batch: Batch, key: jax.Array, frozen: PyTree, accumulate: int = 1
) -> tuple[PyTree, jax.Array, dict[str, jax.Array]]:
    """Gradient of the loss over all micro-batches, that loss, and the metrics.

    The loss is Σ total / Σ denominator, and weight · Σ total / Σ count for each auxiliary loss of the model.
    """
    divisors: dict[str, jax.Array] = {}  # of the whole batch; known beforehand where there are auxiliary losses
    reported: set[str] = set()

    def loss(params, micro, key):
        result = objective(params, micro, key, frozen)
        metrics = {**result.metrics, **{name: (it.total, it.denominator) for name, it in result.auxiliary.items()}}
        if not result.auxiliary:
            return result.total, (result.denominator, metrics)
        reported.update(result.auxiliary)
        # Sums that are divided by numbers of their own are divided here, before they are added.
        divided = divisors or _divisors(result)
        total = result.total / divided["loss"]
        for name, it in result.auxiliary.items():
            if it.weight:  # the others are metrics only
                total += it.weight * it.total / divided[name]
        return total, (jnp.full((), 1.0 / accumulate), metrics)

    def one(micro, key):
        (total, (denominator, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params, micro, key)
        return grads, total, denominator, metrics

    if accumulate == 1:
        sums = one(batch, key)
    else:

        def add(carry, xs):
            return jax.tree.map(jnp.add, carry, one(*xs)), None

        inputs = (micro_batches(batch, accumulate), jax.random.split(key, accumulate))
        first = jax.tree.map(lambda x: x[0], inputs)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, *first))
        if reported:
            # Counts depend on the batch alone: the rest of this forward pass is dead code, which the compiler drops.
            divisors |= _divisors(objective(params, batch, key, frozen))
        sums, _ = jax.lax.scan(add, zeros, inputs)
    grads, total, denominator, metrics = sums
    scale = 1.0 / jnp.maximum(denominator, 1e-8)  # a batch without a single trained token has a zero gradient
    means = {name: jnp.where(n > 0, s / jnp.where(n > 0, n, 1.0), s) for name, (s, n) in metrics.items()}
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), total * scale, means


def _divisors(whole: Loss) -> dict[str, jax.Array]:
    """What the sums of a whole batch are divided by: `loss`, and each auxiliary loss by its name."""
    found = {"loss": whole.denominator, **{name: it.denominator for name, it in whole.auxiliary.items()}}
    return {name: jnp.maximum(jax.lax.stop_gradient(count), 1e-8) for name, count in found.items()}


def make_train_step(
    objective: Objective, optimizer, *, accumulate: int = 1, shardings: tuple[PyTree, Any, Any] | None = None,
    options: Options | None = None,
) -> Callable[[State, Batch, PyTree], tuple[State, dict[str, jax.Array]]]:  # fmt: skip
    """A jitted `step(state, batch, frozen) -> (state, metrics)`; the old state's memory is reused for the new one.

    Args:
        objective: what to minimise.
        optimizer: as `easylm_jax.train.optimizer.make_optimizer` makes it.
        accumulate: micro-batches a step.
        shardings: of the state, of a batch and of replicated scalars; left out on a single device.
        options: what the compiler is told (`easylm_jax.runtime.compiler.options`).
    """

    def step(state: State, batch: Batch, frozen: PyTree) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        grads, loss, metrics = gradients(objective, state.params, batch, key, frozen, accumulate)
        params, opt, info = optimizer.update(grads, loss, state.opt, state.params, state.step)
        return State(state.step + 1, params, opt, state.rng), {"loss": loss, **metrics, **info}

    if shardings is None:
        return jax.jit(step, donate_argnums=0, compiler_options=options)
    state, batch, scalar = shardings
    return jax.jit(
        step, donate_argnums=0, in_shardings=(state, batch, None), out_shardings=(state, scalar),
        compiler_options=options,
    )  # fmt: skip


def make_score_step(
    objective: Objective, *, shardings: tuple[PyTree, Any, Any] | None = None, options: Options | None = None
) -> Callable[[PyTree, Batch, PyTree], dict[str, jax.Array]]:
    """A jitted `score(params, batch, frozen) -> sums`: the objective without its gradient, for held-out data.

    Returns `{name: (sum, count)}` with `loss` among the names, so that batches add up before they are divided.
    """

    def score(params: PyTree, batch: Batch, frozen: PyTree) -> Sums:
        result = objective(params, batch, jax.random.key(0), frozen)
        auxiliary = {name: (it.total, it.denominator) for name, it in result.auxiliary.items()}
        return {**result.metrics, **auxiliary, "loss": (result.total, result.denominator)}

    if shardings is None:
        return jax.jit(score, compiler_options=options)
    params, batch, scalar = shardings
    return jax.jit(score, in_shardings=(params, batch, None), out_shardings=scalar, compiler_options=options)
