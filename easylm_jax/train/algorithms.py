"""The algorithms of optimisers by name, as optax transformations of gradients into directions of descent.

A transformation gets gradients in float32, clipped, and returns what the learning rate is multiplied by and subtracted
(x in p ← p − lr·x); rates, decay, clips and the guard are the same for all and stand in `optimizer.py` and `guard.py`.

A new algorithm is a function here and a line in `OPTIMIZERS`. Its keyword parameters say what it is set by: one without
a default is the field of `OptimizerConfig` of that name, one with a default is an option (`OptimizerConfig.options`).
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from easylm_jax.config.optimizer import OptimizerConfig
from easylm_jax.train.guard import Chosen
from models.errors import UserError
from models.trees import named_map

Tree = Any

# Fields of `OptimizerConfig` that belong to some algorithms and not to others.
_SETTINGS = ("b1", "b2", "eps", "moment_dtype", "second_moment_dtype")


def adamw(
    *, b1: float, b2: float, eps: float, moment_dtype: str, second_moment_dtype: str
) -> optax.GradientTransformationExtraArgs:
    """Adam (arXiv 1412.6980); with the decoupled decay that all algorithms here have it is AdamW (arXiv 1711.05101).

    Unlike `optax.scale_by_adam` it forms 1 − beta^count without cancellation (optax is off by 6e-5 for beta 0.999), and
    makes the direction from the moments as they are kept, which are of `moment_dtype` and `second_moment_dtype`.
    """

    def init(params: Tree) -> AdamState:
        def zeros(dtype: str) -> Tree:
            return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype), params)

        return AdamState(zeros(moment_dtype), zeros(second_moment_dtype), jnp.zeros((), jnp.int32))

    def update(
        grads: Tree, state: AdamState, params: Tree | None = None, *, accept: jax.Array | None = None, **_: Any
    ) -> tuple[Tree, AdamState | Chosen]:
        count = state.count + (1 if accept is None else accept)
        # The number of this update, where it is made. It waits for the guard's decision, and so do parameters: XLA then
        # goes through them in an order in which caches still hold their moments.
        number = jnp.maximum(count, 1)

        # The guard's choice is made here, so that the direction is made from the moments as they are kept: they are
        # updated in place first, and the parameter after them. Made from what is not kept it would force XLA to copy
        # both (four times slower on a CPU).
        def kept(new: jax.Array, old: jax.Array) -> jax.Array:
            return new if accept is None else jnp.where(accept, new, old)

        def first(g: jax.Array, m: jax.Array) -> jax.Array:
            return kept((b1 * m.astype(jnp.float32) + (1 - b1) * g).astype(m.dtype), m)

        def second(g: jax.Array, v: jax.Array) -> jax.Array:
            return kept((b2 * v.astype(jnp.float32) + (1 - b2) * jnp.square(g)).astype(v.dtype), v)

        def direction(m: jax.Array, v: jax.Array) -> jax.Array:
            m_hat = m.astype(jnp.float32) / _bias_correction(b1, number)
            v_hat = v.astype(jnp.float32) / _bias_correction(b2, number)
            return m_hat / (jnp.sqrt(v_hat) + eps)

        mu, nu = jax.tree.map(first, grads, state.mu), jax.tree.map(second, grads, state.nu)
        new = AdamState(mu, nu, count)
        return jax.tree.map(direction, mu, nu), new if accept is None else Chosen(new)

    return optax.GradientTransformationExtraArgs(init, update)


class AdamState(NamedTuple):
    """Adam's moments, nested as the parameters, and how many updates made them (int32)."""

    mu: Tree
    nu: Tree
    count: jax.Array  # type: ignore[assignment]  # a tuple has a method of that name


def lion(*, b1: float, b2: float, moment_dtype: str) -> optax.GradientTransformation:
    """Lion (arXiv 2302.06675): the sign of a mean of gradient and momentum.

    For language models the paper has b1 0.95 and b2 0.98, a rate of a tenth of AdamW's, and ten times its decay.
    """
    return _kept_in(moment_dtype, "mu", optax.scale_by_lion(b1, b2))


def adafactor(
    *, decay_rate: float = 0.8, min_dim_size_to_factor: int = 128, epsilon: float = 1e-30,
    clipping_threshold: float | None = 1.0, multiply_by_parameter_scale: bool = True,
) -> optax.GradientTransformation:  # fmt: skip
    """Adafactor (arXiv 1804.04235) without momentum: second moments of a matrix by rows and by columns.

    As `optax.adafactor` but for the decay, which is multiplied by the learning rate as with all algorithms here. The
    root mean squares that clip a block and scale its step are of a whole leaf, all layers of a stack together.
    """
    scaled = optax.scale_by_factored_rms(
        decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor, epsilon=epsilon
    )
    links = [] if clipping_threshold is None else [optax.clip_by_block_rms(clipping_threshold)]
    links += [optax.scale_by_param_block_rms()] if multiply_by_parameter_scale else []
    return _followed(scaled, *links)


def muon(
    *, b1: float, b2: float, eps: float, moment_dtype: str, second_moment_dtype: str,
    momentum: float = 0.95, nesterov: bool = True, ns_steps: int = 5, consistent_rms: float | None = 0.2,
) -> optax.GradientTransformation:  # fmt: skip
    """Muon (github.com/KellerJordan/Muon) for the kernels of hidden layers; AdamW for embeddings, heads and vectors.

    Each layer's matrix [in, out] of a stack is made orthogonal on its own. `b1`, `b2` and `eps` are AdamW's,
    `momentum`, `nesterov` and `ns_steps` Muon's. With `consistent_rms` 0.2 a step has the root mean square of one of
    AdamW's, so that one rate and one decay serve both (arXiv 2502.16982); None scales by √max(1, out/in) instead.
    """

    def dimensions(params: Tree) -> Tree:
        return jax.tree.map(lambda _: _MATRICES, params)

    momenta = optax.contrib.scale_by_muon(
        ns_steps=ns_steps, beta=momentum, nesterov=nesterov, weight_dimension_numbers=dimensions
    )

    def scale(direction: jax.Array) -> jax.Array:
        fan_in, fan_out = direction.shape[-2:]
        if consistent_rms is None:
            return direction * math.sqrt(max(1.0, fan_out / fan_in))
        return direction * (consistent_rms * math.sqrt(max(fan_in, fan_out)))

    scaled = optax.stateless(lambda directions, _: jax.tree.map(scale, directions))
    others = adamw(b1=b1, b2=b2, eps=eps, moment_dtype=moment_dtype, second_moment_dtype=second_moment_dtype)
    kinds = {"muon": _followed(_kept_in(moment_dtype, "mu", momenta), scaled), "adamw": others}
    return optax.partition(kinds, _muon_or_adamw)


_MATRICES = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)  # axes before them: layers, experts


def _muon_or_adamw(params: Tree) -> Tree:
    """Which of the two an update of each parameter is: `muon` for kernels that lead from hidden to hidden values."""

    def kind(name: str, leaf: Any) -> str:
        parts = name.split(".")
        outer = {"embed", "head", "score"} & set(parts)
        return "muon" if leaf.ndim >= 2 and not outer and parts[-1] in _KERNELS else "adamw"

    return named_map(kind, params)


_KERNELS = ("kernel", "lora_a", "lora_b")


def sgd(*, b1: float, moment_dtype: str, nesterov: bool = False) -> optax.GradientTransformation:
    """Gradient descent with momentum `b1`, as `optax.sgd`: m ← b1·m + g. With b1 0 it keeps nothing."""
    return optax.identity() if b1 == 0 else _kept_in(moment_dtype, "trace", optax.trace(b1, nesterov))


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "lion": lion,
    "adafactor": adafactor,
    "muon": muon,
    "sgd": sgd,
}


def algorithm(config: OptimizerConfig) -> optax.GradientTransformation:
    """The transformation that `config.name` and its settings describe.

    Raises:
        UserError: no such algorithm, an option that it does not have, or a field set that it has no use for.
    """
    build, taken = _named(config.name), settings(config.name)
    for field in _SETTINGS:
        default = getattr(OptimizerConfig, field)
        if field not in taken and getattr(config, field) != default:
            raise UserError(f"optimizer {config.name} has no {field}; leave it at {default!r}")
    options = [name for name, it in inspect.signature(build).parameters.items() if it.default is not it.empty]
    chosen = dict(config.options)
    for name in chosen:
        if name not in options:
            listed = ", ".join(options) or "none"
            raise UserError(f"optimizer {config.name} has no option {name!r}{_near(name, options)}; it has {listed}")
    return build(**{field: getattr(config, field) for field in taken}, **chosen)


def settings(name: str) -> tuple[str, ...]:
    """The fields of `OptimizerConfig` that an algorithm is set by; `UserError` where there is none of that name."""
    return tuple(field for field, it in inspect.signature(_named(name)).parameters.items() if it.default is it.empty)


def _named(name: str) -> Callable[..., optax.GradientTransformation]:
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer {name!r} is not known{_near(name, OPTIMIZERS)}; there are {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _bias_correction(beta: float, count: jax.Array) -> jax.Array:
    """1 − beta^count, without the cancellation that float32 suffers for beta near 1 and small counts."""
    if beta == 0:
        return jnp.ones((), jnp.float32)
    return -jnp.expm1(count.astype(jnp.float32) * math.log(beta))


def _kept_in(dtype: str, field: str, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation that keeps the moments in one field of its state in `dtype`; its arithmetic stays float32."""
    if dtype == "float32":
        return inner

    def cast(state: Any, to: str) -> Any:
        return state._replace(**{field: jax.tree.map(lambda m: m.astype(to), getattr(state, field))})

    def init(params: Tree) -> Tree:
        return cast(inner.init(params), dtype)

    def update(grads: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        directions, state = inner.update(grads, cast(state, "float32"), params)
        return directions, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def _followed(
    first: optax.GradientTransformation, *others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """A chain of which the first link alone has a state, which is the chain's: leaves have names without a number."""

    def update(grads: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        directions, state = first.update(grads, state, params)
        for link in others:
            directions, _ = link.update(directions, optax.EmptyState(), params)
        return directions, state

    return optax.GradientTransformation(first.init, update)
