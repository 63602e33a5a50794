"""Builds a device mesh from a recipe's text such as `"fsdp=-1"` or `"dp=2,fsdp=4,tp=2"`.

| mesh axis | shards |
|---|---|
| `slice` | the batch, over TPU slices connected by the data-centre network |
| `dp` | the batch; parameters are replicated (data parallelism) |
| `fsdp` | the batch, and every parameter along its width (fully sharded data parallelism) |
| `cp` | the sequence, and every parameter along its width as `fsdp` does (context parallelism) |
| `ep` | the batch, experts, and every other parameter along its width (expert parallelism) |
| `tp` | heads, feed-forward and vocabulary (tensor parallelism) |
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

import jax
import numpy as np

from models.errors import UserError

ELASTIC = "EASYLM_ELASTIC"
"""Set where a supervisor may start the run again on fewer devices (`exit_status.INDIVISIBLE`)."""


class Indivisible(UserError):
    """A mesh or a batch that does not divide over the devices; it may over fewer."""


AXES = ("slice", "dp", "fsdp", "cp", "ep", "tp")
BATCH_AXES = ("slice", "dp", "fsdp", "ep")


def parse_mesh(text: str, devices: int) -> dict[str, int]:
    """Sizes of all axes for `devices` devices. One axis may be −1 (all remaining devices); the default is 1.

    Raises:
        UserError: an unknown axis or size, or sizes whose product does not match the number of devices.
    """
    sizes = dict.fromkeys(AXES, 1)
    for part in filter(None, (p.strip() for p in text.split(","))):
        axis, _, size = (p.strip() for p in part.partition("="))
        if axis not in AXES:
            near = difflib.get_close_matches(axis, AXES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the axes are {', '.join(AXES)}"
            raise UserError(f"mesh {text!r}: unknown axis {axis!r}; {hint}")
        if size != "-1" and not (size.isdigit() and int(size) > 0):
            raise UserError(f"mesh {text!r}: the size of {axis} must be a positive whole number or -1, not {size!r}")
        sizes[axis] = int(size)
    free = [axis for axis in AXES if sizes[axis] == -1]
    if len(free) > 1:
        raise UserError(f"mesh {text!r}: only one axis may be -1, not {' and '.join(free)}")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if devices % fixed or (not free and fixed != devices):
        raise Indivisible(
            f"mesh {text!r} needs {'a multiple of ' if free else ''}{fixed} devices, but there are {devices}; "
            f"make one axis -1 or change the sizes so that their product is {devices}"
        )
    if free:
        sizes[free[0]] = devices // fixed
    return sizes


def make_mesh(text: str, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh with all axes (size 1 where not named) on the given devices, by default on all devices."""
    devices = list(jax.devices() if devices is None else devices)
    shape = tuple(parse_mesh(text, len(devices)).values())
    if devices[0].platform == "tpu":
        from jax.experimental import mesh_utils

        if shape[0] > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                (1, *shape[1:]), (shape[0], *(1,) * (len(shape) - 1)), devices=devices
            )
        else:
            try:
                grid = mesh_utils.create_device_mesh(shape, devices=devices)
            except NotImplementedError:  # the axis is no product of torus dimensions: one must be split
                grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    else:
        grid = np.asarray(devices).reshape(shape)
    return jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def reshaped(mesh: jax.sharding.Mesh, text: str) -> jax.sharding.Mesh:
    """The devices of `mesh`, in the same order, in another shape, so that one program can reshard between the two."""
    shape = tuple(parse_mesh(text, mesh.size).values())
    return jax.sharding.Mesh(mesh.devices.reshape(shape), AXES, axis_types=mesh.axis_types)


def batch_split(mesh: jax.sharding.Mesh) -> int:
    """The number of shards of the rows of a batch on this mesh."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)
