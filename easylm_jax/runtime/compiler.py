"""XLA options for each compiled program on a TPU.

By default the TPU compiler all-gathers sharded parameters while the chip waits; on v4 and v5p it even does so as an
all-reduce of arrays padded with zeros (twice the bytes, plus writing the zeros). With the options for asynchronous
all-gathers, it gathers piece by piece and overlaps the transfer with matrix products. Over a mesh axis of up to about
32 devices it would also split a product into one round per shard (windowed einsum) and write the partial sums to
memory in the activation dtype after each round; that is switched off. `benchmarks/pods.py` shows the effect of both,
and of larger tiles.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from models.config import Compute

Options = dict[str, bool | int | str]

# From public MaxText recipes for v5p and v6e (benchmarks/xla_flags_library.py); the compiler has no other options for
# this purpose on these chips. v7 offloads collectives to its sparse cores without options.
_OVERLAP: Options = {
    "xla_tpu_prefer_async_allgather_to_allreduce": True,
    "xla_enable_async_all_gather": True,
    "xla_tpu_overlap_compute_collective_tc": True,
}
_FUSION: Options = {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
}
# With these, compilers after this version refuse every program for another chip than v5e: "might lead to many errors
# including but not limited to: incorrect results, hang" (libtpu 0.0.50; 0.0.42 compiles them).
_LAST_FUSING = (0, 0, 42)
# Matrix products whose operands are smaller than this many MiB are never split into rounds.
_NO_WINDOWED_EINSUM: Options = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 2**20}
_OVERLAP_KINDS = ("TPU v4", "TPU v5", "TPU v6")  # prefixes of `device_kind`


def peak_bytes(program: jax.stages.Compiled, platform: str = "tpu") -> int:
    """Peak memory of one device of a platform while the program runs, in bytes; 0 if the compiler does not report it.

    The TPU compiler reports device and host memory together, so arguments that stay in host memory are subtracted.
    Those of GPUs and CPUs report no peak that holds temporaries, so the parts are added.
    """
    memory: Any = program.memory_analysis()
    if memory is None:
        return 0
    if platform == "tpu":
        return int(getattr(memory, "peak_memory_in_bytes", 0)) - getattr(memory, "host_argument_size_in_bytes", 0)
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(memory.argument_size_in_bytes + new_outputs + memory.temp_size_in_bytes)


def options(mesh: jax.sharding.Mesh, compute: Compute) -> Options | None:
    """Compiler options for a program that trains or scores on this mesh; None if there are none."""
    device = mesh.devices.flat[0]
    if device.platform != "tpu":
        return None
    found: Options = {}
    if mesh.size > 1:
        found |= _NO_WINDOWED_EINSUM
        if device.device_kind.startswith(_OVERLAP_KINDS):
            found |= _OVERLAP
            if device.device_kind == "TPU v5 lite" or _libtpu() <= _LAST_FUSING:
                found |= _FUSION
    if compute.tile_kib is not None:
        found["xla_tpu_scoped_vmem_limit_kib"] = str(compute.tile_kib)
    return found or None


@functools.cache
def _libtpu() -> tuple[int, ...]:
    """The version of the TPU compiler; a later one than all others where it is not installed."""
    try:
        return tuple(int(part) for part in re.findall(r"\d+", version("libtpu"))[:3])
    except PackageNotFoundError:
        return (10**6,)


def scorer(function: Callable[..., Any], mesh: jax.sharding.Mesh, compute: Compute) -> Any:
    """`function`, jitted for scoring on this mesh; its result is replicated on every device."""
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(function, out_shardings=replicated, compiler_options=options(mesh, compute))
