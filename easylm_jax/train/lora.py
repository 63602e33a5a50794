"""Low-rank adapters (LoRA, arXiv 2106.09685): train W + (alpha / rank) A B with W frozen.

An adapter is a separate tree, so the train step differentiates with respect to it and keeps optimizer state for it
only: `objective(merge(base, adapter, config))`. An export applies the same `merge` once.
"""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from easylm_jax.config.optimizer import LoraConfig
from models.errors import UserError
from models.trees import leaf_names, matches

Tree = Any


def init_lora(key: jax.Array, params: Tree, config: LoraConfig) -> dict:
    """A new adapter: for a kernel [..., in, out], A [..., in, rank] and B [..., rank, out], where B is 0.

    A is uniform in ±1/√in (variance 1/(3 in), the usual choice) with a random key derived from the kernel's name, so
    adding a target does not change the initialization of the others. Each entry of leading axes (layers, experts) has
    its own adapter. Leaves are float32 and named like the kernel, with `lora_a` and `lora_b` in its place.

    Raises:
        UserError: a target matches no kernel, or the rank is larger than a side of a kernel.
    """
    names = leaf_names(params)
    shapes = {n: leaf.shape for n, leaf in zip(names, jax.tree.leaves(params), strict=True) if _is_kernel(n)}
    adapter: dict = {}
    for name in _targets(config, list(shapes)):
        *lead, inputs, outputs = shapes[name]
        if config.rank > min(inputs, outputs):
            raise UserError(f"lora: rank {config.rank} is larger than a side of {name} [{inputs}, {outputs}]")
        bound = inputs**-0.5
        own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        node = adapter
        for part in name.split(".")[:-1]:
            node = node.setdefault(part, {})
        node["lora_a"] = jax.random.uniform(own_key, (*lead, inputs, config.rank), jnp.float32, -bound, bound)
        node["lora_b"] = jnp.zeros((*lead, config.rank, outputs), jnp.float32)
    return adapter


def merge(params: Tree, lora: Tree, config: LoraConfig, key: jax.Array | None = None) -> Tree:
    """`params` with every adapted W replaced by W + (alpha / rank) A B, in the dtype of W. Differentiable in `lora`.

    `key` enables dropout and is passed in training steps only.
    """
    drop_key = key if config.dropout else None

    def walk(base: Tree, adapter: dict, path: tuple[str, ...]) -> Tree:
        if "lora_a" in adapter:
            return base | {"kernel": _adapted(base["kernel"], adapter, config, drop_key, ".".join(path))}
        return base | {name: walk(base[name], inner, (*path, name)) for name, inner in adapter.items()}

    return walk(params, lora, ())


def _adapted(kernel: jax.Array, adapter: dict, config: LoraConfig, key: jax.Array | None, name: str) -> jax.Array:
    a, b = adapter["lora_a"], adapter["lora_b"]
    if key is not None:
        keep = 1.0 - config.dropout
        own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        kept = jax.random.bernoulli(own_key, keep, (*a.shape[:-1], 1))
        a = jnp.where(kept, a / keep, 0.0)
    # The sum is computed in float32 and rounded once. Full precision is cheap beside a train step.
    delta = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST) * (config.alpha / config.rank)
    return (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)


def _is_kernel(name: str) -> bool:
    return name.split(".")[-1] == "kernel"


def _targets(config: LoraConfig, kernels: list[str]) -> list[str]:
    """The kernels that match the targets, in tree order."""
    for target in config.targets:
        if not any(matches(target, name) for name in kernels):
            raise UserError(f"lora: target {target!r} matches no kernel; there are {', '.join(sorted(kernels))}")
    return [name for name in kernels if any(matches(target, name) for target in config.targets)]
