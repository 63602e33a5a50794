"""The guard: an update whose loss or gradient is not finite, or stands out, is not made, and is counted.

`guarded` wraps any optax transformation. It decides on the device, from one loss and one norm, and selects between new
and old leaf by leaf; nothing is multiplied by 0, since 0 times a number that is not finite is not a number. Counters
and windows are part of the state, so that a resumed run decides as one that was never stopped. The rule is that of
OLMo-core's SkipStepAdamW (`easylm_jax.config.optimizer.SkipStep`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from easylm_jax.config.optimizer import SkipStep

Tree = Any


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class OptState:
    """What an optimiser carries from update to update; a tree of arrays, to be saved whole.

    `inner` is the algorithm's own state. Its fields are leaves and attributes of this one: with Adam `mu` and `nu`
    (moments, nested as the trained parameters) and `count` (updates made, int32), so that a checkpoint's names are
    `mu.<parameter>` and not `inner.mu.<parameter>`. `losses`, `grad_norms`: the last finite values [window] (float32),
    written round and round at `recorded % window`. `recorded`: how many were ever written. `skipped_total`,
    `skipped_in_row`: updates not made (int32).
    """

    inner: Any
    losses: jax.Array
    grad_norms: jax.Array
    recorded: jax.Array
    skipped_total: jax.Array
    skipped_in_row: jax.Array

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":  # asked for before there is an `inner`, by pickle
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _replace(self, **changes: Any) -> OptState:
        """A copy with fields of this state or of the algorithm's changed, as a named tuple has it."""
        own = {name: changes.pop(name) for name in _FIELDS if name in changes}
        if changes:
            own["inner"] = own.get("inner", self.inner)._replace(**changes)
        return dataclasses.replace(self, **own)

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], Any]:
        """The fields of `inner`, one level deep, then those of the guard."""
        fields, structure = jax.tree_util.tree_flatten_with_path(self.inner, is_leaf=lambda x: x is not self.inner)
        own = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in _FIELDS[1:]]
        return [*((path[0], child) for path, child in fields), *own], structure

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """The same without names: every call of a step goes through here."""
        fields, structure = jax.tree.flatten(self.inner, is_leaf=lambda x: x is not self.inner)
        guard = (self.losses, self.grad_norms, self.recorded, self.skipped_total, self.skipped_in_row)
        return (*fields, *guard), structure

    @classmethod
    def tree_unflatten(cls, structure: Any, children: Any) -> OptState:
        count = structure.num_leaves
        return cls(jax.tree.unflatten(structure, children[:count]), *children[count:])


_FIELDS = tuple(field.name for field in dataclasses.fields(OptState))


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Around the new state of a transformation that was given `accept` and chose between new and old by itself."""

    state: Any


class Verdict(NamedTuple):
    """Whether an update is made (bool), the guard's next fields of `OptState`, and what to report of them."""

    accept: jax.Array
    fields: dict[str, jax.Array]
    report: dict[str, jax.Array]


def guarded(
    inner: optax.GradientTransformation, rule: SkipStep | None, instead: Callable[[Tree, Tree], Tree] | None = None
) -> optax.GradientTransformationExtraArgs:
    """A transformation that leaves everything as it was where `inner`'s update should not be made.

    Its `update` takes the batch's `loss`, and `grad_norm` (the norm of all gradients) where the caller has it already.
    Both the norm and the decision, `accept`, are extra arguments for `inner`, beside all others. An `inner` that makes
    its updates from its new state can return that as `Chosen`: then updates depend on what is kept alone, and XLA needs
    no copy of the old state.

    Args:
        inner: any transformation.
        rule: what an outlier is; None skips only updates that are not finite.
        instead: from `inner`'s updates and the parameters, what stands in for updates that are not made; by default
            −0, which leaves every number that it is added to as it was (0 would change −0).
    """
    within = optax.with_extra_args_support(inner)
    window = (rule or SkipStep()).window

    def init(params: Tree) -> OptState:
        def zero() -> jax.Array:
            return jnp.zeros((), jnp.int32)  # one array each: a donated buffer must not appear twice

        return OptState(
            within.init(params), jnp.zeros(window, jnp.float32), jnp.zeros(window, jnp.float32), zero(), zero(), zero()
        )

    def update(
        grads: Tree, state: OptState, params: Tree | None = None, *, loss: Any, grad_norm: Any = None, **extra: Any
    ) -> tuple[Tree, OptState]:
        norm = global_norm(grads) if grad_norm is None else grad_norm
        verdict = judge(state, rule, loss, norm)
        updates, new = within.update(grads, state.inner, params, grad_norm=norm, accept=verdict.accept, **extra)
        old = jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates) if instead is None else instead(updates, params)

        def chosen(new: Any, old: Any) -> Any:
            return new.state if isinstance(new, Chosen) else jnp.where(verdict.accept, new, old)

        kept = jax.tree.map(chosen, new, state.inner)
        return jax.tree.map(chosen, updates, old), OptState(kept, **verdict.fields)

    return optax.GradientTransformationExtraArgs(init, update)


def judge(state: OptState, rule: SkipStep | None, loss: Any, grad_norm: jax.Array) -> Verdict:
    """Whether to make an update of this loss and norm (before clipping), from the window that `state` has.

    Reports `skipped` (0 or 1), the counters, and `loss_deviation` and `grad_norm_deviation`: how many standard
    deviations this update lies above the remembered ones (0 while they are too few).
    """
    loss, bounds = jnp.asarray(loss, jnp.float32), rule or SkipStep()
    earlier = jnp.minimum(state.recorded, state.losses.shape[0])
    enough = earlier + 1 >= bounds.min_values
    # A norm is not finite if any gradient is not; one number says it for the whole tree, however it is sharded.
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    accept = finite
    report = {}
    for name, value, window in (("loss", loss, state.losses), ("grad_norm", grad_norm, state.grad_norms)):
        mean, deviation = _mean_and_deviation(window, earlier)
        excess = value - mean
        if rule:
            accept &= ~(enough & (excess > bounds.sigma * deviation))
        known = enough & finite & (deviation > 0)
        report[f"{name}_deviation"] = jnp.where(known, excess / jnp.where(known, deviation, 1.0), 0.0)
    skipped = (~accept).astype(jnp.int32)
    at = state.recorded % state.losses.shape[0]
    fields = {
        "losses": jnp.where(finite, state.losses.at[at].set(loss), state.losses),
        "grad_norms": jnp.where(finite, state.grad_norms.at[at].set(grad_norm), state.grad_norms),
        "recorded": state.recorded + finite,
        "skipped_total": state.skipped_total + skipped,
        "skipped_in_row": jnp.where(accept, 0, state.skipped_in_row + 1),
    }
    report |= {"skipped": skipped} | {name: fields[name] for name in ("skipped_total", "skipped_in_row")}
    return Verdict(accept, fields, report)


def global_norm(leaves: Any) -> jax.Array:
    """Euclidean norm over all leaves of a tree together, squared and summed in float32."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(leaves)]
    return jnp.sqrt(sum(squares, start=jnp.zeros((), jnp.float32)))


def _mean_and_deviation(window: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and sample standard deviation of the first `count` entries of `window` (all of them once it is full)."""
    used = jnp.arange(window.shape[0]) < count
    mean = jnp.sum(jnp.where(used, window, 0.0)) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(used, jnp.square(window - mean), 0.0))
    return mean, jnp.sqrt(squares / jnp.maximum(count - 1, 1))
