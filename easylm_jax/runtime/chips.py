"""Accelerators by name: peak FLOP/s, memory, bandwidth, interconnect. The one table for both plans and MFU."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax


# Peak dense bf16 FLOP/s of one JAX device, by a prefix of its `device_kind`; the longest matching prefix counts. TPUs:
# the "System architecture" pages of the Cloud TPU documentation, which give figures per chip; a JAX device is one of
# two cores on v3 and one of two chiplets on v7. GPUs: NVIDIA's A100, H100 and H200 datasheets, without sparsity.
PEAK_FLOPS: dict[str, float] = {
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
    "TPU v7": 2307e12 / 2,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
}


def device_peak_flops(device_kind: str) -> float | None:
    """Peak dense bf16 FLOP/s of a device of this kind (`jax.Device.device_kind`); None if the table has no entry."""
    for name in sorted(PEAK_FLOPS, key=len, reverse=True):
        if device_kind.lower().startswith(name.lower()):
            return PEAK_FLOPS[name]
    return None


def total_peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """Peak FLOP/s of all these devices together; None if the kind of one is unknown.

    The peak of a CPU is measured once per process, in f32. Simulated CPU devices, and processes on one machine, share
    the same cores, so the measured figure counts for all of them together.
    """
    if devices[0].platform == "cpu":
        return measured_cpu_flops()
    peaks = [device_peak_flops(device.device_kind) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if len(known) == len(peaks) else None


@functools.cache
def measured_cpu_flops(size: int = 1024, repeats: int = 5) -> float:
    """f32 FLOP/s of this machine: the fastest of a few square matrix products, by XLA and by NumPy. Takes ~0.3 s."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    square = np.ones((size, size), np.float32)
    on_device = jax.device_put(square, jax.local_devices(backend="cpu")[0])
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    product(on_device).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        for multiply in (lambda: product(on_device).block_until_ready(), lambda: square @ square):
            start = time.perf_counter()
            multiply()
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


NANOSECOND = 1e9  # the `clock` of a GPU: its roofline is counted in nanoseconds instead of cycles
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device of a generation (half a chip on v3 and tpu7x).

    Attributes:
        memory: bytes that the compiler lets one program use, read from its error message for a too large program.
        flops: peak bfloat16 FLOP/s, from `PEAK_FLOPS`.
        bandwidth: bytes/s of HBM.
        link: bytes/s in one direction over one link between chips.
        clock: Hz that convert the compiler's cycles to seconds (peak FLOP/s over the width of the matrix units).
        torus: number of dimensions of the interconnect.
        per_chip: JAX devices per chip.
        cores: cores per chip as counted in Google Cloud's names (v5p-128 is 64 chips).
        kernel_share: share of the peak that an attention kernel reaches; an assumption.
        network: bytes/s per device between slices or GPU nodes; by default 50 Gb/s per TPU chip, an assumption.
        options: passed to JAX with the description of the topology.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    link: float
    clock: float
    torus: int
    per_chip: int = 1
    cores: int = 1
    kernel_share: float = 0.5
    network: float = 6.25e9
    platform: str = "tpu"
    options: tuple[tuple[str, str], ...] = ()


_MEGACORE = (("chip_config_name", "megacore"),)  # both cores of a chip form one JAX device
CHIPS: dict[str, Chip] = {
    "v3": Chip("v3", int(15.48 * GIB), PEAK_FLOPS["TPU v3"], 450e9, 70e9, 0.94e9, 2, per_chip=2, cores=2),
    "v4": Chip("v4", int(30.75 * GIB), PEAK_FLOPS["TPU v4"], 1228e9, 45e9, 1.05e9, 3, cores=2, options=_MEGACORE),
    "v5e": Chip("v5e", int(15.75 * GIB), PEAK_FLOPS["TPU v5e"], 819e9, 45e9, 1.5e9, 2),
    "v5p": Chip("v5p", int(95.74 * GIB), PEAK_FLOPS["TPU v5p"], 2765e9, 90e9, 1.75e9, 3, cores=2),
    "v6e": Chip("v6e", int(31.25 * GIB), PEAK_FLOPS["TPU v6e"], 1640e9, 90e9, 1.75e9, 2, kernel_share=0.4),
    "tpu7x": Chip("tpu7x", int(94.75 * GIB), PEAK_FLOPS["TPU7x"], 3690e9, 90e9, 2.2e9, 3, per_chip=2, kernel_share=0.4),
    # 80 GB; 450 GB/s in each direction over NVLink within a node, 400 Gb/s of InfiniBand per GPU between nodes.
    "h100": Chip(
        "h100", 80 * 10**9, PEAK_FLOPS["NVIDIA H100"], 3352e9, 225e9, NANOSECOND, 1, network=50e9, platform="gpu"
    ),
}
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v7x": "tpu7x", "7x": "tpu7x", "v7": "tpu7x", "ironwood": "tpu7x",
            "trillium": "v6e"}  # fmt: skip

# The names in Google's Cloud TPU API, which `tpu_scripts/` use: what comes before the size in an accelerator type, and
# the version of the TPU VM's software ("TPU software versions" in the Cloud TPU documentation). It has no tpu7x.
CLOUD_NAMES: dict[str, tuple[str, str]] = {
    "v3": ("v3", "tpu-ubuntu2204-base"),
    "v4": ("v4", "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", "v2-alpha-tpuv5"),
    "v6e": ("v6e", "v2-alpha-tpuv6e"),
}
