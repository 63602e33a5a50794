"""Logical axes to shardings. Every leaf must match exactly one rule; there is no default.

A model names the logical axes of its parameters (`model.sharding_rules`); `LOGICAL_AXES` says which mesh axis splits
each. Moments of the optimiser are named after their parameter and split like it. A leaf that no rule names is an error
at start-up, never a silent copy on every device.
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

from easylm_jax.runtime.mesh import BATCH_AXES, batch_split, reshaped
from models.config import Compute, DecoderConfig, Placement
from models.errors import UserError
from models.trees import leaf_names, named_map

PyTree = Any
Rules = Sequence[tuple[str, tuple[str | None, ...]]]

LOGICAL_AXES: Mapping[str, str | tuple[str, ...]] = {
    "width": ("fsdp", "cp"), "heads": "tp", "ffn": "tp", "vocab": "tp", "experts": "ep"
}  # fmt: skip


HOST_MEMORY = "pinned_host"


def logical_axes(name: str, rules: Rules) -> tuple[str | None, ...]:
    """The logical axes of the leaf called `name`. No rule, or more than one, is an error."""
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
    for axes, size in zip(split, shape, strict=True):
        ways = {axis: mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ())}
        if size % math.prod(ways.values()):
            named = " x ".join(axis for axis, count in ways.items() if count > 1)
            raise UserError(
                f"mesh: {name} of shape {shape} cannot be split {math.prod(ways.values())} ways along {named}; "
                f"choose a size of {named} that divides {size}"
            )
    return NamedSharding(mesh, PartitionSpec(*split))


def state_shardings(state: PyTree, rules: Rules, mesh: jax.sharding.Mesh, replicated: Sequence[str]) -> PyTree:
    """Shardings of a whole train state.

    A leaf whose name ends in a parameter's name is split like that parameter (moments under any prefix). The names
    in `replicated` (regular expressions: counters, random key, windows of scalars) are whole on every device, and so
    are leaves of the optimiser with fewer axes than their parameter (sums over its rows or columns), or one number.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    prefixed = [(rf"(?:.*\.)?(?:{pattern})", axes) for pattern, axes in rules]

    def one(name, leaf):
        if any(re.fullmatch(pattern, name) for pattern in replicated):
            return everywhere
        axes = logical_axes(name, prefixed)
        if name.startswith("opt.") and (len(leaf.shape) < len(axes) or math.prod(leaf.shape) == 1):
            return everywhere
        return _sharding(name, leaf.shape, prefixed, mesh)

    return named_map(one, state)


def with_moments_on_host(layout: PyTree) -> PyTree:
    """A train state's shardings with the optimiser's moments in the memory of the hosts.

    Moments are what has as many axes as its parameter; counters and windows, whole everywhere, stay on the devices.
    """

    def moved(place: NamedSharding) -> NamedSharding:
        return place.with_memory_kind(HOST_MEMORY) if len(place.spec) else place

    return layout._replace(opt=jax.tree.map(moved, layout.opt))


def with_shardings(tree: PyTree, shardings: PyTree) -> PyTree:
    """The shapes and types of a tree with a sharding each, for compiling and restoring."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings
    )


def adapter_rules(rules: Rules) -> Rules:
    """Rules for the leaves of a low-rank adapter: each half is split as the side of the kernel that it touches."""
    halves = []
    for pattern, axes in rules:
        if pattern.endswith(r"\.kernel"):
            stem = pattern.removesuffix("kernel")
            *lead, inputs, outputs = axes
            halves += [(stem + "lora_a", (*lead, inputs, None)), (stem + "lora_b", (*lead, None, outputs))]
    return tuple(halves)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows over the batch axes; everything behind the rows is whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_with_shardings(
    batch: Mapping[str, jax.ShapeDtypeStruct], mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch's columns with rows over the batch axes."""
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)) for name, x in batch.items()}


def check_rows(rows: int, accumulate: int, mesh: jax.sharding.Mesh) -> None:
    """A batch of `rows` must divide into micro-batches, and those over the batch axes of the mesh."""
    if rows % (accumulate * batch_split(mesh)):
        raise UserError(
            f"a batch of {rows} rows cannot be split over {batch_split(mesh)} parts of the mesh "
            f"in {accumulate} micro-batches; make it a multiple of {accumulate * batch_split(mesh)}"
        )


def check_length(length: int, mesh: jax.sharding.Mesh) -> None:
    """Sequences of `length` tokens must divide over `cp`."""
    size = mesh.shape["cp"]
    if length % size:
        raise UserError(
            f"mesh: cp={size} cannot split {length} tokens of a sequence; choose a size that divides {length}"
        )


def decode_mesh_of(name: str, mesh: jax.sharding.Mesh, text: str | None) -> jax.sharding.Mesh:
    """The devices of `mesh` in the shape in which a stage writes: that of `text` (a recipe's `decode_mesh`), if any.

    A cache of keys and values is not split along its length, so that a mesh with `cp` cannot write.
    """
    try:
        writes = mesh if text is None else reshaped(mesh, text)
    except UserError as error:
        raise UserError(f"decode_mesh: {error}") from error
    if writes.shape["cp"] > 1:
        raise UserError(
            f"stage {name}: writing cannot split sequences over cp={writes.shape['cp']}; give it the same devices in "
            'another shape, such as decode_mesh="dp=-1"'
        )
    return writes


def placement_of(mesh: jax.sharding.Mesh) -> Placement:
    """Which axes of this mesh a model's arrays are split over."""
    if mesh.size == 1:
        return Placement()
    return Placement(BATCH_AXES, "cp" if mesh.shape["cp"] > 1 else None, "tp")


def with_supported_attention(compute: Compute, mesh: jax.sharding.Mesh) -> Compute:
    """How a model is computed on this mesh: without attention kernels where a TPU takes none (the compiler refuses
    their bfloat16 products for v2 and v3)."""
    kinds = ("TPU v2", "TPU v3")
    plain = compute.attention == "auto" and mesh.devices.flat[0].device_kind.startswith(kinds)
    return dataclasses.replace(compute, attention="blocked") if plain else compute


def check_heads(config: DecoderConfig, mesh: jax.sharding.Mesh) -> None:
    """Attention must divide into whole heads over `tp`: kernels are mapped by head; a head that is cut is gathered."""
    size = mesh.shape["tp"]
    for heads, what in ((config.heads, "heads"), (config.kv_heads, "key-value heads")):
        if heads % size:
            raise UserError(f"mesh: tp={size} cannot split {heads} {what}; choose a size of tp that divides {heads}")


@functools.lru_cache(maxsize=64)  # a pod has thousands of devices to go through, and every batch asks
def local_rows(rows: int, mesh: jax.sharding.Mesh, process: int | None = None) -> np.ndarray:
    """The numbers of the rows of a global batch that a process (this one) must provide, ascending.

    They are rarely consecutive on a pod: a mesh follows the links of the torus, and the chips of a host form a square
    in it.
    """
    process = jax.process_index() if process is None else process
    places = batch_sharding(mesh).devices_indices_map((rows,))
    spans = {place[0].indices(rows)[:2] for device, place in places.items() if device.process_index == process}
    numbers = np.concatenate([np.arange(*span) for span in sorted(spans)])
    numbers.setflags(write=False)
    return numbers


def place_batch(local: Mapping[str, np.ndarray], rows: int, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """The global batch on the devices, from the rows `local_rows` that each process holds."""
    sharding, mine = batch_sharding(mesh), local_rows(rows, mesh)

    def place(array: np.ndarray) -> jax.Array:
        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            first = np.searchsorted(mine, start)
            return array[first : first + stop - start]

        return jax.make_array_from_callback((rows, *array.shape[1:]), sharding, of_device, dtype=array.dtype)

    return {name: place(array) for name, array in local.items()}


def describe(tree: PyTree, shardings: PyTree) -> str:
    """A table of name, shape, split and bytes on one device, one line a leaf and a total."""
    lines, total = [], 0
    leaves = zip(leaf_names(tree), jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    for name, leaf, sharding in leaves:
        size = int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        total += size
        lines.append(f"{name:<44} {str(leaf.shape):<24} {str(sharding.spec):<44} {size:>14,}")
    return "\n".join([*lines, f"{'total on one device':<114} {total:>14,}"])


def bytes_of(tree: PyTree) -> int:
    """Bytes of a tree (arrays, or shapes with shardings) on one device; what lies in its host's memory is not on it."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != HOST_MEMORY
    )
