"""AdamW with decoupled decay, a global clip, and a guard that skips bad updates on the device.

One update is one pass over the parameters: clip, moments, decay, step and the choice between the new values and the
old ones are one elementwise expression for each leaf, in float32, which XLA fuses; with the state donated it works in
place. The mathematics of Adam is optax's (the tests compare the two); it is written out here because the chain of
optax forms `1 - beta**count` in float32 (off by 1e-5 for beta 0.999) and because the skipped update has to be
selected leaf by leaf. Sources: OLMo 2 (arXiv 2501.00656), Loshchilov and Hutter (arXiv 1711.05101).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from easylm_jax.config.optimizer import OptimizerConfig, SkipStep
from easylm_jax.train.schedule import Schedule, parse_schedule
from models.errors import UserError
from models.trees import leaf_names, match, prune

Tree = Any


class OptState(NamedTuple):
    """What an optimiser carries from update to update; a plain tree of arrays, to be saved whole.

    `mu`, `nu`: Adam's moments, nested as the trainable parameters. `count`: updates that Adam made (int32).
    `losses`, `grad_norms`: the last finite values [window] (float32), written round and round at `recorded % window`.
    `recorded`: how many were ever written. `skipped_total`, `skipped_in_row`: updates not made (int32).
    """

    mu: Tree
    nu: Tree
    count: jax.Array
    losses: jax.Array
    grad_norms: jax.Array
    recorded: jax.Array
    skipped_total: jax.Array
    skipped_in_row: jax.Array


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Pure functions of arrays; nothing here waits for the device except `check`, which takes host numbers."""

    config: OptimizerConfig
    schedule: Schedule

    def trainable(self, params: Tree) -> Tree:
        """The trained part of `params`, frozen leaves left out; `params` itself when nothing is frozen."""
        keep = match(self.config.trainable, leaf_names(params), "optimizer.trainable")
        return prune(params, keep)

    def init(self, params: Tree) -> OptState:
        """The state before the first update, for parameters (or their shapes, under `jax.eval_shape`)."""
        trained = self.trainable(params)
        window = (self.config.skip_step or SkipStep()).window

        def zeros(dtype: str) -> Tree:
            return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype), trained)

        def zero() -> jax.Array:
            return jnp.zeros((), jnp.int32)  # one array each: a donated buffer must not appear twice

        return OptState(
            mu=zeros(self.config.moment_dtype),
            nu=zeros(self.config.second_moment_dtype),
            count=zero(),
            losses=jnp.zeros(window, jnp.float32),
            grad_norms=jnp.zeros(window, jnp.float32),
            recorded=zero(),
            skipped_total=zero(),
            skipped_in_row=zero(),
        )

    def update(
        self, grads: Tree, loss: jax.Array, state: OptState, params: Tree, step: int | jax.Array
    ) -> tuple[Tree, OptState, dict[str, jax.Array]]:
        """One update. `grads` is nested as `params` or as `trainable(params)`; `loss` is the global batch's.

        `step` counts the updates that the trainer has taken before this one (from 0), skipped ones included, and sets
        the learning rate: with a warm-up from 0 the very first update only fills the moments, as in optax and
        transformers.

        Returns the new parameters, the new state and float32 or int32 scalars to report: `lr`, `grad_norm` (before
        clipping) and `param_norm` (after the update), both of the trained leaves, `skipped` (0 or 1), `skipped_total`,
        `skipped_in_row`, and `loss_deviation` and `grad_norm_deviation`: how many standard deviations this update lies
        above the remembered ones (0 while they are too few). `update_norm` is there when the configuration asks.
        """
        names = leaf_names(params)
        kept = match(self.config.trainable, names, "optimizer.trainable")
        leaves, treedef = jax.tree.flatten(params)
        trained = [leaf for leaf, name in zip(leaves, names, strict=True) if name in kept]
        gradients = _align(grads, names, kept)
        mu, nu = jax.tree.leaves(state.mu), jax.tree.leaves(state.nu)
        lr = self.schedule(step)
        loss = jnp.asarray(loss, jnp.float32)
        grad_norm = global_norm(gradients)
        accept, guard, info = self._judge(state, loss, grad_norm)
        count = state.count + accept
        leaf_update = functools.partial(
            _adamw, config=self.config, lr=lr, scale=self._clip(grad_norm), count=jnp.maximum(count, 1), accept=accept
        )
        decayed = self._decayed(kept)
        trained_names = [name for name in names if name in kept]
        if self.config.offload:
            leaf_update = functools.partial(_from_host, leaf_update)
        new = [
            leaf_update(*values, decayed=name in decayed)
            for name, *values in zip(trained_names, trained, gradients, mu, nu, strict=True)
        ]
        new_trained = iter(p for p, _, _ in new)
        new_params = [next(new_trained) if name in kept else leaf for leaf, name in zip(leaves, names, strict=True)]
        info |= {"lr": lr, "grad_norm": grad_norm, "param_norm": global_norm([p for p, _, _ in new])}
        if self.config.update_norm:
            moved = [after.astype(jnp.float32) - before for (after, _, _), before in zip(new, trained, strict=True)]
            info["update_norm"] = global_norm(moved)
        state = OptState(
            mu=jax.tree.unflatten(jax.tree.structure(state.mu), [m for _, m, _ in new]),
            nu=jax.tree.unflatten(jax.tree.structure(state.nu), [v for _, _, v in new]),
            count=count,
            **guard,
        )
        return jax.tree.unflatten(treedef, new_params), state, info

    def _judge(self, state: OptState, loss: jax.Array, grad_norm: jax.Array) -> tuple[jax.Array, dict, dict]:
        """Whether to make the update; the guard's next state; what to report."""
        rule = self.config.skip_step or SkipStep()
        earlier = jnp.minimum(state.recorded, state.losses.shape[0])
        enough = earlier + 1 >= rule.min_values
        # A norm is not finite if any gradient is not; one number says it for the whole tree, however it is sharded.
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        accept = finite
        info = {}
        for name, value, window in (("loss", loss, state.losses), ("grad_norm", grad_norm, state.grad_norms)):
            mean, deviation = _mean_and_deviation(window, earlier)
            excess = value - mean
            if self.config.skip_step:
                accept &= ~(enough & (excess > rule.sigma * deviation))
            known = enough & finite & (deviation > 0)
            info[f"{name}_deviation"] = jnp.where(known, excess / jnp.where(known, deviation, 1.0), 0.0)
        skipped = (~accept).astype(jnp.int32)
        at = state.recorded % state.losses.shape[0]
        guard = {
            "losses": jnp.where(finite, state.losses.at[at].set(loss), state.losses),
            "grad_norms": jnp.where(finite, state.grad_norms.at[at].set(grad_norm), state.grad_norms),
            "recorded": state.recorded + finite,
            "skipped_total": state.skipped_total + skipped,
            "skipped_in_row": jnp.where(accept, 0, state.skipped_in_row + 1),
        }
        info |= {"skipped": skipped} | {name: guard[name] for name in ("skipped_total", "skipped_in_row")}
        return accept, guard, info

    def _clip(self, grad_norm: jax.Array) -> jax.Array:
        """What gradients are multiplied by, so that their global norm stays within `clip`."""
        if self.config.clip is None:
            return jnp.ones((), jnp.float32)
        return jnp.minimum(1.0, self.config.clip / (grad_norm + 1e-6))

    def _decayed(self, names: Any) -> set[str]:
        """The names whose leaves are decayed."""

        def spared(name: str) -> bool:
            parts = name.split(".")
            embedding = "embed" in parts and not self.config.decay_embeddings
            small = parts[-1] in ("scale", "bias") and not self.config.decay_norms_and_biases
            return embedding or small

        return {name for name in names if self.config.weight_decay and not spared(name)}

    def describe(self, params: Tree) -> str:
        """What happens to each parameter, one line a leaf, grouped into decayed, not decayed and frozen."""
        names, leaves = leaf_names(params), jax.tree.leaves(params)
        kept = match(self.config.trainable, names, "optimizer.trainable")
        decayed = self._decayed(kept)
        groups: dict[str, list[str]] = {f"decayed by {self.config.weight_decay:g}": [], "not decayed": [], "frozen": []}
        sizes = dict.fromkeys(groups, 0)
        for name, leaf in zip(names, leaves, strict=True):
            group = list(groups)[0 if name in decayed else 1 if name in kept else 2]
            groups[group].append(f"  {name} [{', '.join(map(str, leaf.shape))}]")
            sizes[group] += math.prod(leaf.shape)
        lines = []
        for group, members in groups.items():
            if members:
                lines += [f"{group}: {len(members)} leaves, {sizes[group]:,} parameters", *members]
        return "\n".join(lines)

    def check(self, metrics: Mapping[str, Any], step: int) -> None:
        """Raises `UserError` once `abort_after` updates in a row were skipped.

        `metrics` are a step's, on the host: `loss`, and `skipped_in_row` and `grad_norm` as `update` reports them.
        """
        in_row = int(metrics["skipped_in_row"])
        if self.config.abort_after is not None and in_row >= self.config.abort_after:
            loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
            raise UserError(
                f"step {step}: the last {in_row} updates were all skipped (loss {loss:g}, gradient norm {norm:g}); go "
                "back to an earlier checkpoint with a lower learning rate or other data, or raise optimizer.abort_after"
            )


def make_optimizer(config: OptimizerConfig, total_steps: int, tokens_per_step: int | None = None) -> Optimizer:
    """The optimiser of a run of `total_steps` updates, each over `tokens_per_step` tokens (the whole batch)."""
    return Optimizer(config, parse_schedule(config.lr, total_steps=total_steps, tokens_per_step=tokens_per_step))


def global_norm(leaves: Any) -> jax.Array:
    """Euclidean norm over all leaves of a tree together, squared and summed in float32."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(leaves)]
    return jnp.sqrt(sum(squares, start=jnp.zeros((), jnp.float32)))


def _align(grads: Tree, names: list[str], kept: set[str]) -> list[jax.Array]:
    """The gradients of the trained leaves, from a tree that holds all leaves or the trained ones alone."""
    by_name = dict(zip(leaf_names(grads), jax.tree.leaves(grads), strict=True))
    if set(by_name) not in (set(names), kept):
        odd = sorted(set(by_name) ^ set(names))
        raise ValueError(f"gradients and parameters are not the same tree; they differ in {', '.join(odd)}")
    return [by_name[name] for name in names if name in kept]


def _mean_and_deviation(window: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and sample standard deviation of the first `count` entries of `window` (all of them once it is full)."""
    used = jnp.arange(window.shape[0]) < count
    mean = jnp.sum(jnp.where(used, window, 0.0)) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(used, jnp.square(window - mean), 0.0))
    return mean, jnp.sqrt(squares / jnp.maximum(count - 1, 1))


def _adamw(p, g, m, v, *, config: OptimizerConfig, lr, scale, count, accept, decayed: bool):
    """New parameter and moments of one leaf, or the old ones where `accept` is false; each in its own dtype."""
    g = g.astype(jnp.float32) * scale
    m_old, v_old = m.astype(jnp.float32), v.astype(jnp.float32)
    # Chosen, never multiplied by 0: 0 times a gradient that is not a number is not a number.
    m = jnp.where(accept, (config.b1 * m_old + (1 - config.b1) * g).astype(m.dtype), m)
    v = jnp.where(accept, (config.b2 * v_old + (1 - config.b2) * jnp.square(g)).astype(v.dtype), v)
    # The step is made from the moments as they are kept: they are updated in place first, and the parameter after
    # them. Made from their old values it would force XLA to copy both (four times slower on a CPU).
    m_hat = m.astype(jnp.float32) / _bias_correction(config.b1, count)
    v_hat = v.astype(jnp.float32) / _bias_correction(config.b2, count)
    p_new = p.astype(jnp.float32) * (1 - lr * config.weight_decay) if decayed else p.astype(jnp.float32)
    p_new = p_new - lr * (m_hat / (jnp.sqrt(v_hat) + config.eps))
    return jnp.where(accept, p_new.astype(p.dtype), p), m, v


def _from_host(update, p, g, m, v, **how):
    """An update of one leaf whose moments lie in the host's memory, and go back there."""
    m, v = jax.device_put((m, v), jax.memory.Space.Device)
    p, m, v = update(p, g, m, v, **how)
    return p, *jax.device_put((m, v), jax.memory.Space.Host)


def _bias_correction(beta: float, count: jax.Array) -> jax.Array:
    """1 − beta^count, without the cancellation that float32 suffers for beta near 1 and small counts."""
    if beta == 0:
        return jnp.ones((), jnp.float32)
    return -jnp.expm1(count.astype(jnp.float32) * math.log(beta))
