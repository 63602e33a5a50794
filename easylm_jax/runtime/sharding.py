"""Maps logical axes of arrays to shardings on a mesh. Every leaf must match exactly one rule; there is no default.

A model names the logical axes of its parameters (`model.sharding_rules`); `LOGICAL_AXES` maps each logical axis to mesh
axes. Optimizer moments are named after their parameter and sharded like it. A leaf that matches no rule is an error at
start-up and is never silently replicated.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from easylm_jax.runtime.mesh import BATCH_AXES, Indivisible, batch_split, reshaped
from models.config import Compute, DecoderConfig, Placement
from models.errors import UserError
from models.trees import leaf_names, named_map

PyTree = Any
Rules = Sequence[tuple[str, tuple[str | None, ...]]]

LOGICAL_AXES: Mapping[str, str | tuple[str, ...]] = {
    "width": ("fsdp", "cp", "ep"), "heads": "tp", "ffn": "tp", "vocab": "tp",
    "experts": "ep", "expert_width": ("fsdp", "cp"),
}  # fmt: skip


HOST_MEMORY = "pinned_host"


def logical_axes(name: str, rules: Rules) -> tuple[str | None, ...]:
    """The logical axes of the leaf called `name`.

    Raises:
        UserError: no rule matches, or more than one.
    """
    hits = [axes for pattern, axes in rules if re.fullmatch(pattern, name)]
    if len(hits) != 1:
        raise UserError(
            f"sharding: {name} matches {len(hits)} rules and must match exactly one (the model's sharding_rules)"
        )
    return hits[0]


def parameter_shardings(tree: PyTree, rules: Rules, mesh: jax.sharding.Mesh) -> PyTree:
    """A `NamedSharding` for each parameter of `tree` (arrays or their shapes)."""
    return named_map(lambda name, leaf: _sharding(name, leaf.shape, rules, mesh), tree)


def _sharding(name: str, shape: tuple[int, ...], rules: Rules, mesh: jax.sharding.Mesh) -> NamedSharding:
    axes = logical_axes(name, rules)
    if len(axes) != len(shape):
        raise UserError(f"sharding: {name} has shape {shape}, but its rule names {len(axes)} axes")
    split = [LOGICAL_AXES[axis] if axis is not None else None for axis in axes]
    for mesh_axes, size in zip(split, shape, strict=True):
        ways = {axis: mesh.shape[axis] for axis in ((mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ())}
        if size % math.prod(ways.values()):
            named = " x ".join(axis for axis, count in ways.items() if count > 1)
            raise Indivisible(
                f"mesh: {name} of shape {shape} cannot be split {math.prod(ways.values())} ways along {named}; "
                f"choose a size of {named} that divides {size}"
            )
    return NamedSharding(mesh, PartitionSpec(*split))


def state_shardings(state: PyTree, rules: Rules, mesh: jax.sharding.Mesh, replicated: Sequence[str]) -> PyTree:
    """Shardings of a whole train state.

    A leaf whose name ends in a parameter's name is sharded like that parameter (moments under any prefix). Leaves whose
    names match `replicated` (regular expressions: counters, random key, windows of scalars) are replicated, and so are
    leaves of the optimizer with fewer axes than their parameter (sums over its rows or columns), or with one number.
    """
    replicated_sharding = NamedSharding(mesh, PartitionSpec())
    prefixed = [(rf"(?:.*\.)?(?:{pattern})", axes) for pattern, axes in rules]

    def leaf_sharding(name: str, leaf: Any) -> NamedSharding:
        if any(re.fullmatch(pattern, name) for pattern in replicated):
            return replicated_sharding
        axes = logical_axes(name, prefixed)
        if name.startswith("opt.") and (len(leaf.shape) < len(axes) or math.prod(leaf.shape) == 1):
            return replicated_sharding
        return _sharding(name, leaf.shape, prefixed, mesh)

    return named_map(leaf_sharding, state)


def with_moments_on_host(layout: PyTree) -> PyTree:
    """The shardings of a train state with the optimizer moments in host memory.

    Moments are the leaves that have as many axes as their parameter; counters and windows, which are replicated, stay
    on the devices.
    """

    def on_host(sharding: NamedSharding) -> NamedSharding:
        return sharding.with_memory_kind(HOST_MEMORY) if len(sharding.spec) else sharding

    return layout._replace(opt=jax.tree.map(on_host, layout.opt))


def with_shardings(tree: PyTree, shardings: PyTree) -> PyTree:
    """The shapes and dtypes of a tree with a sharding for each leaf, for compiling and restoring."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
    )


def adapter_rules(rules: Rules) -> Rules:
    """Rules for the leaves of a LoRA adapter: each factor is sharded like the side of the kernel that it multiplies."""
    factors: list[tuple[str, tuple[str | None, ...]]] = []
    for pattern, axes in rules:
        if pattern.endswith(r"\.kernel"):
            stem = pattern.removesuffix("kernel")
            *lead, inputs, outputs = axes
            factors += [(stem + "lora_a", (*lead, inputs, None)), (stem + "lora_b", (*lead, None, outputs))]
    return tuple(factors)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows sharded over the batch axes; all other dimensions are not sharded."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_with_shardings(
    batch: Mapping[str, jax.ShapeDtypeStruct], mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch's columns with the rows sharded over the batch axes."""
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)) for name, x in batch.items()}


def everywhere(value: np.generic, sharding: NamedSharding) -> jax.Array:
    """A scalar that every process has, on the devices of a replicated sharding.

    `jax.device_put` would compare it over all processes, also those that have none of these devices.
    """
    return jax.make_array_from_callback((), sharding, lambda _: np.asarray(value), dtype=value.dtype)


def check_rows(rows: int, accumulate: int, mesh: jax.sharding.Mesh) -> None:
    """Raises a UserError unless `rows` divide into micro-batches, and each of these over the batch axes of the mesh."""
    if rows % (accumulate * batch_split(mesh)):
        raise Indivisible(
            f"a batch of {rows} rows cannot be split over {batch_split(mesh)} shards of the mesh "
            f"in {accumulate} micro-batches; make it a multiple of {accumulate * batch_split(mesh)}"
        )


def check_length(length: int, mesh: jax.sharding.Mesh) -> None:
    """Raises a UserError unless sequences of `length` tokens divide over `cp`."""
    size = mesh.shape["cp"]
    if length % size:
        raise UserError(
            f"mesh: cp={size} cannot split a sequence of {length} tokens; choose a size that divides {length}"
        )


def decode_mesh_of(name: str, mesh: jax.sharding.Mesh, text: str | None) -> jax.sharding.Mesh:
    """The mesh a stage generates on: the devices of `mesh`, in the shape `text` (a recipe's `decode_mesh`) if given.

    Raises:
        UserError: `text` does not fit the devices, or the mesh has `cp`: the KV cache is not sharded along its length.
    """
    try:
        decode_mesh = mesh if text is None else reshaped(mesh, text)
    except UserError as error:
        raise UserError(f"decode_mesh: {error}") from error
    if decode_mesh.shape["cp"] > 1:
        raise UserError(
            f"stage {name}: generation cannot split sequences over cp={decode_mesh.shape['cp']}; give the recipe "
            'another mesh to generate on, such as decode_mesh="dp=-1"'
        )
    return decode_mesh


def placement_of(mesh: jax.sharding.Mesh) -> Placement:
    """The mesh axes that the arrays of a model are sharded over."""
    if mesh.size == 1:
        return Placement()
    return Placement(BATCH_AXES, "cp" if mesh.shape["cp"] > 1 else None, "tp", "ep")


def with_supported_attention(compute: Compute, mesh: jax.sharding.Mesh) -> Compute:
    """`compute` with an attention implementation that works on this mesh: "auto" becomes "blocked" on TPU v2 and v3,
    whose compiler rejects the bfloat16 products of attention kernels."""
    kinds = ("TPU v2", "TPU v3")
    no_kernel = compute.attention == "auto" and mesh.devices.flat[0].device_kind.startswith(kinds)
    return dataclasses.replace(compute, attention="blocked") if no_kernel else compute


def check_heads(config: DecoderConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises a UserError unless the heads divide over `tp`: attention kernels are mapped over whole heads."""
    size = mesh.shape["tp"]
    for heads, what in ((config.heads, "heads"), (config.kv_heads, "key-value heads")):
        if heads % size:
            raise UserError(f"mesh: tp={size} cannot split {heads} {what}; choose a size of tp that divides {heads}")


@functools.lru_cache(maxsize=64)  # called for every batch, and loops over the thousands of devices of a pod
def local_rows(rows: int, mesh: jax.sharding.Mesh, process: int | None = None) -> np.ndarray:
    """The indices of the rows of a global batch that a process (by default this one) must provide, ascending.

    On a pod they are rarely consecutive: a mesh follows the links of the torus, in which the chips of a host form a
    square.
    """
    process = jax.process_index() if process is None else process
    slices: Mapping[Any, Any] = batch_sharding(mesh).devices_indices_map((rows,))
    spans = {index[0].indices(rows)[:2] for device, index in slices.items() if device.process_index == process}
    indices = np.concatenate([np.arange(*span) for span in sorted(spans)])
    indices.setflags(write=False)
    return indices


def place_batch(local: Mapping[str, np.ndarray], rows: int, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """The global batch on the devices; `local` holds the rows of this process, those of `local_rows`."""
    sharding, mine = batch_sharding(mesh), local_rows(rows, mesh)

    def place(array: np.ndarray) -> jax.Array:
        def of_device(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(rows)
            first = np.searchsorted(mine, start)
            return array[first : first + stop - start]

        return jax.make_array_from_callback((rows, *array.shape[1:]), sharding, of_device, dtype=array.dtype)

    return {name: place(array) for name, array in local.items()}


def describe(tree: PyTree, shardings: PyTree) -> str:
    """A table of name, shape, sharding and bytes on one device: one line per leaf and a total."""
    lines, total = [], 0
    leaves = zip(leaf_names(tree), jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    for name, leaf, sharding in leaves:
        size = int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        total += size
        lines.append(f"{name:<44} {str(leaf.shape):<24} {str(sharding.spec):<44} {size:>14,}")
    return "\n".join([*lines, f"{'total on one device':<114} {total:>14,}"])


def bytes_of(tree: PyTree) -> int:
    """Bytes of a tree (arrays, or shapes with shardings) on one device; arrays in host memory do not count."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != HOST_MEMORY
    )
