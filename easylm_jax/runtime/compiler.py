"""What the TPU's compiler is told, program by program, beside the program itself.

Left alone, it gathers parameters that lie split over a mesh while the chip waits, on v4 and v5p even as a sum of arrays
padded with zeros (twice the bytes, and as much to fill). Told so, it gathers piece by piece inside the products that
run meanwhile. Over an axis of up to 32 devices or so it would also cut a product into rounds, one for the part of each,
whose sums go to memory and back in the activation type every time; it is told not to. `benchmarks/pods.py` shows what
that, and larger tiles, bring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from models.config import Compute

Options = dict[str, bool | int | str]

# Named in public recipes of MaxText for v5p and v6e (benchmarks/xla_flags_library.py); the compiler knows no others of
# this purpose for these chips. v7 moves collectives to its sparse cores by itself.
_OVERLAP: Options = {
    "xla_tpu_prefer_async_allgather_to_allreduce": True,
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
}
# Products whose operands have fewer MiB than this are never cut into rounds.
_WHOLE: Options = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 2**20}
_KINDS = ("TPU v4", "TPU v5", "TPU v6")  # starts of `device_kind`


def peak_bytes(program: jax.stages.Compiled) -> int:
    """Bytes that are in use on one device when most are, while a program runs; 0 where the compiler does not say.

    The TPU's adds up the memory of the device and of its host; arguments that lie there are there all the time.
    """
    memory = program.memory_analysis()
    if memory is None:
        return 0
    return int(getattr(memory, "peak_memory_in_bytes", 0)) - getattr(memory, "host_argument_size_in_bytes", 0)


def options(mesh: jax.sharding.Mesh, compute: Compute) -> Options | None:
    """Options for a program that trains or scores on this mesh; None where there are none to give."""
    device = mesh.devices.flat[0]
    if device.platform != "tpu":
        return None
    found: Options = {}
    if mesh.size > 1:
        found |= _WHOLE
        if device.device_kind.startswith(_KINDS):
            found |= _OVERLAP
    if compute.tile_kib is not None:
        found["xla_tpu_scoped_vmem_limit_kib"] = str(compute.tile_kib)
    return found or None


def scorer(function: Callable[..., Any], mesh: jax.sharding.Mesh, compute: Compute) -> Any:
    """`function`, jitted: a program that scores on this mesh and leaves the whole of its result on every device."""
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(function, out_shardings=everywhere, compiler_options=options(mesh, compute))
