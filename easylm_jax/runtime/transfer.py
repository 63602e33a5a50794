"""Copies trees of arrays from one mesh to another that has none of its devices; the processes of both take part.

Two meshes of several processes have no program in common, so the copy runs on the union of their devices: each shard is
put at its place in zeros of the whole array, the sum over all devices is the array, and each device of the target cuts
out its shard. Arrays with a leading axis of layers are copied layer by layer, so a device never holds more than its
shards and one layer. Each device sends about twice the bytes of the tree, whatever the two layouts are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any
_ALL = "all"


class Transfer:
    """Copies trees of these shapes from the shardings `source` to the shardings `target`, on disjoint meshes.

    All processes of both meshes make it, and call it in the same order among their other programs.
    """

    def __init__(self, shapes: PyTree, source: PyTree, target: PyTree):
        self._shapes, self._structure = jax.tree.flatten(shapes)
        self._source, self._target = (jax.tree.leaves(layout) for layout in (source, target))
        devices = [*self._source[0].mesh.devices.flat, *self._target[0].mesh.devices.flat]
        self._devices = {device: place for place, device in enumerate(devices)}
        assert len(self._devices) == len(devices), "the meshes share devices"
        self._mesh = Mesh(np.array(devices), (_ALL,))
        self._rows = NamedSharding(self._mesh, PartitionSpec(_ALL))
        copies = [self._copy(*one) for one in zip(self._shapes, self._source, self._target, strict=True)]

        def program(shards: list[jax.Array]) -> list[jax.Array]:
            return [copy(shard) for copy, shard in zip(copies, shards, strict=True)]

        spec = PartitionSpec(_ALL)
        self._program = jax.jit(jax.shard_map(program, mesh=self._mesh, in_specs=spec, out_specs=spec))

    def _copy(self, leaf: jax.ShapeDtypeStruct, source: NamedSharding, target: NamedSharding) -> Any:
        """A function from a device's shard under `source` to its shard under `target`."""
        first, starts = self._starts(leaf.shape, source)
        _, stops = self._starts(leaf.shape, target)
        given, wanted = source.shard_shape(leaf.shape), target.shard_shape(leaf.shape)

        def one(shard: jax.Array, axes: slice) -> jax.Array:
            here = jax.lax.axis_index(_ALL)
            shape = leaf.shape[axes]
            places = [tuple(jnp.asarray(table)[here, axes]) for table in (starts, stops)]
            own = jnp.where(jnp.asarray(first)[here], shard, jnp.zeros_like(shard))
            placed = jax.lax.dynamic_update_slice(_varying(jnp.zeros(shape, leaf.dtype)), own, places[0])
            whole = jax.lax.psum(placed, _ALL)
            return jax.lax.dynamic_slice(_varying(whole), places[1], wanted[axes])

        layered = len(leaf.shape) > 2 and given[0] == wanted[0] == leaf.shape[0]
        if layered:
            return lambda shard: jax.lax.map(lambda layer: one(layer, slice(1, None)), shard)
        return lambda shard: one(shard, slice(None))

    def _starts(self, shape: tuple[int, ...], sharding: NamedSharding) -> tuple[np.ndarray, np.ndarray]:
        """By device of the union: whether it is the first one with its shard, and where the shard begins."""
        first = np.zeros(len(self._devices), bool)
        starts = np.zeros((len(self._devices), len(shape)), np.int32)
        seen = set()
        for device, index in sharding.devices_indices_map(shape).items():
            start = tuple(part.indices(size)[0] for part, size in zip(index, shape, strict=True))
            place = self._devices[device]
            first[place], starts[place] = start not in seen, start
            seen.add(start)
        return first, starts

    def __call__(self, tree: PyTree | None) -> PyTree:
        """The tree under `target`. Processes without devices of the source give None; those without devices of the
        target get arrays of which they hold nothing."""
        leaves = [None] * len(self._shapes) if tree is None else jax.tree.leaves(tree)
        rows = [self._row(*one) for one in zip(leaves, self._shapes, self._source, strict=True)]
        with jax.set_mesh(self._mesh):
            moved = self._program(rows)
        found = [self._arrays(*one) for one in zip(moved, self._shapes, self._target, strict=True)]
        return jax.tree.unflatten(self._structure, found)

    def _row(self, leaf: Any, shape: jax.ShapeDtypeStruct, source: NamedSharding) -> jax.Array:
        """The shards of a leaf one behind another in an array on the union: zeros on the devices of the target."""
        size = source.shard_shape(shape.shape)
        whole = (len(self._devices) * size[0], *size[1:])
        shards = {} if leaf is None else {shard.device: shard.data for shard in leaf.addressable_shards}
        rows = [
            shards[device] if device in shards else jax.device_put(np.zeros(size, shape.dtype), device)
            for device in self._rows.addressable_devices_indices_map(whole)
        ]
        return jax.make_array_from_single_device_arrays(whole, self._rows, rows, dtype=shape.dtype)

    def _arrays(self, rows: jax.Array, shape: jax.ShapeDtypeStruct, target: NamedSharding) -> jax.Array:
        own = {shard.device: shard.data for shard in rows.addressable_shards}
        shards = [own[device] for device in target.addressable_devices_indices_map(shape.shape)]
        return jax.make_array_from_single_device_arrays(shape.shape, target, shards, dtype=shape.dtype)


def _varying(x: jax.Array) -> jax.Array:
    """A value that is the same on all devices as one that may differ, which `shard_map` tells apart."""
    return jax.lax.pcast(x, _ALL, to="varying")
